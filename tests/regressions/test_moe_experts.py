"""The cases moe_experts and moe_experts_stored_together on the installed release: red as it is, green mended.

On the simulated card, with the test file that `memleak matrix` runs on released versions.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import pytest_memleak
from pytest_memleak.fixes import moe_experts
from tests.conftest import Records

pytestmark = [
    pytest.mark.skipif(torch.accelerator.is_available(), reason="no card is simulated beside a real one"),
    pytest.mark.skipif(
        not find_spec("transformers.core_model_loading"), reason="transformers before 5: no such loader"
    ),
    pytest.mark.skipif(not find_spec("bitsandbytes.nn.parametrize"), reason="bitsandbytes before 0.48"),
]

LOADS = Path(pytest_memleak.__file__).parent / "cases" / "moe_loads.py"
BUG = 'pytest.mark.memleak_bug("moe_experts")'
FIX = 'pytest.mark.memleak_fix("moe_experts")'
SLAB = 2 * 256 * 512 * 2
"""The larger of an expert's two matrices, in bf16. The largest weight of a linear layer is as large."""
FINAL = {
    # Of a load on the CPU as well, byte by byte; GPT-OSS has biases. See docs/moe-experts.md.
    "test_qwen3_moe": 29_852_256,
    "test_mixtral": 29_851_232,
    "test_gpt_oss": 30_125_984,
}
LEFT_AS_IT_IS = {"test_qwen3_moe": 104_542_272, "test_mixtral": 104_541_248, "test_gpt_oss": 104_816_000}

Results = dict[str, dict[str, Any]]
Loads = Callable[..., Results]


@pytest.fixture
def loads(pytester: pytest.Pytester, records: Records) -> Loads:
    """Runs them under these marks, in a process of its own."""

    def run(*marks: str) -> Results:
        text = LOADS.read_text(encoding="utf-8")
        pytester.makepyfile(test_loads=f"{text}\npytestmark += [{', '.join(marks)}]\n")
        arguments = ("-p", "no:cacheprovider", "--gpu-backend=simulated:h200", "--memleak-json=out.json")
        # Those that are mended bring the mark of the fix themselves.
        result = pytester.runpytest_subprocess(*arguments, "-k", "not mended")
        found = {name: test["results"] for name, test in records().items()}
        assert set(found) == set(FINAL), "\n".join(result.outlines)
        assert all(len(results) == 1 for results in found.values()), "\n".join(result.outlines)
        return {name: results[0] for name, results in found.items()}

    return run


@pytest.mark.parametrize("marks", [(FIX,), (BUG, FIX)], ids=["fix", "bug and fix"])
def test_mended(loads: Loads, marks: tuple[str, ...]) -> None:
    results = loads(*marks)
    assert {result["verdict"] for result in results.values()} == {"pass"}
    over = {name: result["measured"] - FINAL[name] for name, result in results.items()}
    # All that is ever there beyond what stays: the expert or the layer that is in hand.
    assert all(0 < bytes_ <= 2 * SLAB for bytes_ in over.values()), over


@pytest.mark.parametrize("marks", [(), (BUG,)], ids=["as it is", "bug"])
@pytest.mark.skipif(not moe_experts.FIX.needed(), reason="this release is right")
def test_experts_at_full_precision(loads: Loads, marks: tuple[str, ...]) -> None:
    results = loads(*marks)
    assert {result["verdict"] for result in results.values()} == {"fail"}
    assert all(result["measured"] >= LEFT_AS_IT_IS[name] for name, result in results.items())
    largest = results["test_qwen3_moe"]["at_peak"][0]
    assert largest["line"].startswith("transformers/core_model_loading.py")


def test_under_a_cap_that_the_load_exceeds_without_it(pytester: pytest.Pytester, records: Records) -> None:
    """Also the warm-up of the allocator asks for no more than the experts are going to take."""
    text = LOADS.read_text(encoding="utf-8")
    pytester.makepyfile(
        test_loads=f"""{text}
pytestmark = [
    # Not told: transformers takes 1.2 GiB off what it is told.
    pytest.mark.gpu_cap("64MiB", told=False), pytest.mark.max_peak("64MiB"), pytest.mark.allocator_warmup("fits")
]

@{FIX}
def test_fits(load):
    test_mixtral(load)

def test_does_not(load):
    test_mixtral(load)
"""
    )
    arguments = ("--gpu-backend=simulated:h200", "--memleak-json=out.json", "-k", "fits or does_not")
    pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments).assert_outcomes(passed=1, failed=1)
    verdicts = {name: {one["verdict"] for one in test["results"]} for name, test in records().items()}
    assert verdicts["test_fits"] == {"pass"}
    assert "fail" in verdicts["test_does_not"]
