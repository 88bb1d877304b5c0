"""What a failure of the body has to do with the card, where torch's own words do not say it."""

from __future__ import annotations

import re
import sys

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.hooks.simulating import is_on
from pytest_memleak.plan import Plan

_NO_CARD = re.compile(
    r"arguments from the '\w*CUDA\w*' backend|not linked with support for cuda|not compiled with CUDA|"
    r"Found no NVIDIA driver|CUDA driver version is insufficient|no CUDA-capable device"
)


def hint_for(error: BaseException, plan: Plan | None) -> str | None:
    return _of_poison(error, plan) or _of_warm_up(error, plan) or _of_a_card_that_is_gone(error)


def _of_poison(error: BaseException, plan: Plan | None) -> str | None:
    """torch fills what it allocates, and refuses types that it has no fill for (float4, sub-byte integers)."""
    poisoned = plan is not None and plan.no_nan is not None and plan.no_nan.poison
    if not poisoned or "fill_empty_deterministic_" not in str(error):
        return None
    return (
        "no_nan fills uninitialized memory with NaN, and torch cannot fill this type.\n"
        "  what to do: leave it as it comes, @pytest.mark.no_nan(poison=False)"
    )


def _of_warm_up(error: BaseException, plan: Plan | None) -> str | None:
    if plan is None or plan.cap is None or not plan.cap.told or "transformers" not in sys.modules:
        return None
    from pytest_memleak.upstream.warmup import LESS_THAN_NOTHING, asked_for_less_than_nothing

    if not asked_for_less_than_nothing(error):
        return None
    return (
        LESS_THAN_NOTHING.format(f"{format_size(plan.cap.bytes)} ({plan.cap.source})") + ".\n"
        "  what to do: give the test a card of more than 1.2 GiB, do not tell the program of it (gpu_cap(..., "
        'told=False)), or leave the warm-up out (memleak_fix("warmup_guard"))'
    )


def _of_a_card_that_is_gone(error: BaseException) -> str | None:
    if "pytest_memleak.cards.simulated.process" not in sys.modules or is_on() or not _NO_CARD.search(str(error)):
        return None
    return (
        "no card is simulated for this test: --gpu-backend=auto has one for tests with a cap and no others, and "
        "without it nothing runs on tensors that an earlier test made there.\n"
        "  what to do: give this test a cap (@pytest.mark.gpu_cap, --gpu-cap), or run all on a simulated card "
        "(--gpu-backend=simulated)"
    )
