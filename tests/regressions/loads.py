"""The loads of the cases four_bit_load, eight_bit_load and cast_on_load, run on a card under markers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pytest_memleak
from tests.conftest import Records

CASES = Path(pytest_memleak.__file__).parent / "cases"
BUG = 'pytest.mark.memleak_bug("four_bit_load")'
FIX = 'pytest.mark.memleak_fix("four_bit_load")'
KEPT = {
    # An H200's with transformers 5.17, to the byte, in a process that loaded nothing before.
    "test_four_bits": 845_078_528,
    "test_eight_bits": 1_275_754_496,
    "test_63_gib_of_fp16_under_32": 20_022_189_056,
    # Predicted alone.
    "test_four_bits_and_a_cast": 845_078_528,
    "test_opt": 232_270_848,
    "test_opt_by_upstreams_own_limit": 232_270_848,
}

Results = dict[str, dict[str, Any]]
Loads = Callable[..., Results]


def loads_on(backend: str, pytester: pytest.Pytester, records: Records) -> Loads:
    """What runs them under these marks, in a process of its own, and gives what became of each test's limit."""

    def run(*marks: str) -> Results:
        text = (CASES / "quantized_loads.py").read_text(encoding="utf-8")
        pytester.makepyfile(test_loads=f"{text}\npytestmark += [{', '.join(marks)}]\n")
        arguments = ("-p", "no:cacheprovider", f"--gpu-backend={backend}", "--memleak-json=out.json")
        result = pytester.runpytest_subprocess(*arguments)
        found = {name: test["results"] for name, test in records().items()}
        assert set(found) == set(KEPT), "\n".join(result.outlines)
        assert all(len(results) == 1 for results in found.values()), "\n".join(result.outlines)
        return {name: results[0] for name, results in found.items()}

    return run


def measured(results: Results) -> dict[str, int]:
    return {name: result["measured"] for name, result in results.items()}


def verdicts(results: Results) -> dict[str, str]:
    return {name: result["verdict"] for name, result in results.items()}
