"""What torch's cache of parametrized weights holds after steps of training: with the fix, with the bug, with both."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrize as cache
from torch.utils.checkpoint import checkpoint

from pytest_memleak.fixes import parametrize_cache
from pytest_memleak.fixes.parametrize_cache import FIX
from pytest_memleak.upstream.patches import Unrecognised

pytest.importorskip("bitsandbytes", minversion="0.48")
quantizing = pytest.importorskip("bitsandbytes.nn.parametrize")

by_itself = pytest.mark.skipif(FIX.needed(), reason="this release has the bug by itself, and none is put in")
PATCHED = ("_register_parametrization_hooks", "_disable_parametrization_cache")

Step = Callable[["Experts", torch.Tensor], Any]


class Experts(torch.nn.Module):
    """Two weights that are read for each half of a batch, so that caching them pays."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = torch.nn.Parameter(torch.randn(2, 64, 64), requires_grad=False)
        self.down = torch.nn.Parameter(torch.randn(2, 64, 64), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        halves = [half @ self.up[one] @ self.down[one] for one, half in enumerate(hidden.chunk(2))]
        if hidden.sum() > 1e6:
            raise OverflowError("too much")
        return torch.cat(halves)


def plain(experts: Experts, hidden: torch.Tensor) -> Any:
    return experts(hidden)


reentrant: Step = functools.partial(checkpoint, use_reentrant=True)
non_reentrant: Step = functools.partial(checkpoint, use_reentrant=False)


def quantized() -> Experts:
    experts = Experts()
    for name in ("up", "down"):
        quantizing.replace_parameter_4bit(experts, name, compress_statistics=True)
    return experts


def three_steps(experts: Experts, how: Step = non_reentrant) -> torch.Tensor:
    torch.manual_seed(1)
    hidden = torch.randn(4, 64, requires_grad=True)
    for _ in range(3):
        how(experts, hidden).sum().backward()
    assert hidden.grad is not None
    return hidden.grad


def state() -> tuple[int, int]:
    """How far the use of the cache is counted up, and how much is in it."""
    return cache._cache_enabled, len(cache._cache)


def mended() -> AbstractContextManager[object]:
    """With the bug, or the fix would find nothing to mend in the installed release."""
    both = ExitStack()
    both.enter_context(FIX.bug())
    assert both.enter_context(FIX.fixed()).patched
    return both


@pytest.fixture(autouse=True)
def puts_back_what_it_found() -> Iterator[None]:
    before = [getattr(quantizing, name) for name in PATCHED]
    yield
    left = state()
    cache._cache_enabled, cache._cache = 0, {}
    assert [getattr(quantizing, name) for name in PATCHED] == before
    if not FIX.needed():
        assert left == (0, 0)


def test_with_the_bug_all_that_was_dequantized_stays() -> None:
    with FIX.bug():
        three_steps(quantized())
        assert state() == (6, 2)
        three_steps(quantized())
        assert state() == (12, 4)


@by_itself
def test_the_bug_leaves_nothing_to_later_tests() -> None:
    kept = torch.nn.Module()
    with cache.cached():
        cache._cache[id(kept), "weight"] = torch.zeros(1)
        with FIX.bug() as applied:
            assert "torch.nn.utils.parametrize._cache (emptied at the end)" in applied.patched
            three_steps(quantized())
            assert state()[0] == 7
        assert cache._cache_enabled == 1
        assert (id(kept), "weight") in cache._cache  # a block that goes on keeps what it has
    assert state() == (0, 0)


def test_the_fix_lets_go_of_it() -> None:
    with mended():
        three_steps(quantized())
        assert state() == (0, 0)
    with FIX.fixed() as applied, FIX.bug():
        three_steps(quantized())
        assert state() == (0, 0)
        assert applied.name == "parametrize_cache"


@by_itself
def test_as_it_is() -> None:
    with FIX.fixed() as applied:
        assert not applied.patched
        three_steps(quantized())
        assert state() == (0, 0)


@pytest.mark.parametrize("how", [plain, reentrant])
def test_who_does_not_end_early_does_not_leak(how: Step) -> None:
    with FIX.bug():
        three_steps(quantized(), how)
        assert state() == (0, 0)
    with mended():
        three_steps(quantized(), how)
        assert state() == (0, 0)


@pytest.mark.parametrize("how", [plain, reentrant, non_reentrant])
def test_gradients_are_the_same(how: Step) -> None:
    with mended():
        mended_gradient = three_steps(quantized(), how)
    with FIX.bug():
        torch.testing.assert_close(three_steps(quantized(), how), mended_gradient, rtol=0, atol=0)


def test_within_a_forward_pass_each_weight_is_dequantized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    dequantize = quantizing.F.dequantize_4bit

    def counted(*of: object) -> Any:
        asked.append(of)
        return dequantize(*of)

    monkeypatch.setattr(quantizing.F, "dequantize_4bit", counted)
    with mended():
        quantized()(torch.randn(4, 64))
    assert len(asked) == 2


def test_a_forward_pass_that_fails_leaves_nothing() -> None:
    def fails() -> None:
        with pytest.raises(OverflowError, match="too much"):
            quantized()(torch.full((4, 64), 1e6))

    with mended():
        fails()
        assert state() == (0, 0)
    with FIX.bug():
        fails()
        assert state() == (2, 2)


def test_a_forward_pass_that_does_not_begin_is_not_counted() -> None:
    """Else the count would be below 0, which is not 0: nothing would be let go of from then on."""

    def refuses(module: object, inputs: object) -> None:
        raise OSError("not today")

    with mended():
        experts = quantized()
        refusing = experts.register_forward_pre_hook(refuses, prepend=True)
        with pytest.raises(OSError, match="not today"):
            experts(torch.randn(4, 64))
        assert state() == (0, 0)
        refusing.remove()
        three_steps(experts)
        assert state() == (0, 0)


def test_a_block_with_the_cache_on_keeps_it_on() -> None:
    with mended(), cache.cached():
        three_steps(quantized())
        assert state() == (1, 2)
    assert state() == (0, 0)


def test_what_was_quantized_before_and_is_loaded() -> None:
    experts, loaded = Experts(), Experts()
    for name in ("up", "down"):
        packed, quantization = quantizing.F.quantize_4bit(getattr(experts, name).data, quant_type="nf4")
        setattr(loaded, name, torch.nn.Parameter(packed, requires_grad=False))
        with mended():
            quantizing.replace_parameter_4bit_prequantized(
                loaded, name, quantization.as_dict(packed=True), torch.device("cpu")
            )
    three_steps(loaded)
    assert state() == (0, 0)


def test_a_copy_is_mended_as_well_and_stays_so() -> None:
    with mended():
        copied = copy.deepcopy(quantized())
    three_steps(copied)
    assert state() == (0, 0)


def test_hooks_that_are_there_stay_as_they_are() -> None:
    with FIX.bug():
        experts = quantized()
        with FIX.fixed():
            three_steps(experts)
            assert state() == (6, 2)


@pytest.mark.parametrize(
    ("module", "name", "changed"),
    [
        (quantizing, "_register_parametrization_hooks", lambda module, name: None),
        (quantizing, "_register_parametrization_hooks", lambda module, param_name: None),
        (quantizing, "_register_parametrization_hooks", lambda module, param_name: module.parametrizations),
        (cache, "_cache_enabled", None),
    ],
    ids=["other parameters", "no hooks", "not of any module", "no count"],
)
@pytest.mark.parametrize("patches", [parametrize_cache._called_on_success, parametrize_cache._always_called])
def test_a_release_that_has_changed_is_left_alone(
    module: Any, name: str, changed: object, patches: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as changing:
        changing.delattr(module, name) if changed is None else changing.setattr(module, name, changed)
        with pytest.raises(Unrecognised, match=name), ExitStack() as undo:
            for patch in patches():
                undo.enter_context(patch)


def test_a_release_that_counts_otherwise_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as changing, FIX.bug():
        changing.setattr(quantizing, "_disable_parametrization_cache", lambda *inputs: None)
        with pytest.raises(
            Unrecognised, match=r"_disable_parametrization_cache of this release has no parameter module"
        ):
            FIX.fixed().__enter__()
