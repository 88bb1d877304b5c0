"""The case parametrize_cache on the installed release: red with the bug put back, green as it is and mended.

With the test file that `memleak matrix` runs on released versions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pytest_memleak
from pytest_memleak.fixes import parametrize_cache
from tests.conftest import Records

pytest.importorskip("transformers", minversion="5.0")
pytest.importorskip("bitsandbytes", minversion="0.48")

STEPS = Path(pytest_memleak.__file__).parent / "cases" / "parametrize_cache.py"
BUG = 'pytest.mark.memleak_bug("parametrize_cache")'
FIX = 'pytest.mark.memleak_fix("parametrize_cache")'
EARLY, REENTRANT, PLAIN = "test_checkpointed", "test_checkpointed_reentrantly", "test_without_checkpointing"
EXPERTS = 4 * 32 * 3 * 512 * 256 * 2

Steps = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def steps(pytester: pytest.Pytester, records: Records) -> Steps:
    """Runs the three tests under these marks, in a process of its own, and gives what became of each."""

    def run(backend: str, *marks: str) -> dict[str, dict[str, Any]]:
        text = f"{STEPS.read_text(encoding='utf-8')}\npytestmark += [{', '.join(marks)}]\n"
        pytester.makepyfile(test_steps=text)
        arguments = ("-p", "no:cacheprovider", f"--gpu-backend={backend}", "--memleak-json=out.json")
        # Those that are mended bring the mark of the fix themselves.
        result = pytester.runpytest_subprocess(*arguments, "-k", "not mended")
        found = {name: test["results"] for name, test in records().items()}
        assert all(len(results) == 1 for results in found.values()), "\n".join(result.outlines)
        return {name: results[0] for name, results in found.items()}

    return run


def held(found: dict[str, dict[str, Any]]) -> dict[str, tuple[str, int]]:
    return {name: (result["verdict"], result["measured"]) for name, result in found.items()}


@pytest.mark.parametrize("marks", [(), (BUG, FIX)], ids=["as it is", "bug and fix"])
def test_nothing_stays(steps: Steps, marks: tuple[str, ...]) -> None:
    if not marks and parametrize_cache.FIX.needed():
        marks = (FIX,)
    assert held(steps("cpu", *marks)) == dict.fromkeys((EARLY, REENTRANT, PLAIN), ("pass", 0))


@pytest.mark.parametrize(
    "backend",
    [
        "cpu",
        pytest.param(
            "simulated:h200",
            marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="no card is simulated beside a real one"),
        ),
    ],
)
def test_with_the_bug_every_expert_stays_and_the_cache_is_named(steps: Steps, backend: str) -> None:
    found = steps(backend, BUG)
    assert held(found)[EARLY] == ("fail", EXPERTS)
    # On a release that has the bug by itself, later tests of the process find the cache on.
    if not parametrize_cache.FIX.needed():
        assert held(found) == {EARLY: ("fail", EXPERTS), REENTRANT: ("pass", 0), PLAIN: ("pass", 0)}

    owner, state = found[EARLY]["details"]
    assert owner.startswith("96 MiB in 8 tensors (bfloat16 [32, 512, 512] and others): module global torch.nn.utils.")
    assert "torch.nn.utils.parametrize._cache[(" in owner
    assert "'gate_up_proj')] (and 7 more)" in owner
    # Three steps, four layers, two parameters each.
    assert "_cache_enabled is 0. It is 24: counted up and not down" in state
    assert found[EARLY]["advice"].endswith(
        "take a release without it, or pytest_memleak.fixes.apply('parametrize_cache') before anything is quantized, "
        "or checkpoint with use_reentrant=True"
    )
