"""The cases of FSDP loads on the installed releases: red with the bug put back or as it is, green mended.

Two ranks on the CPU, with the test file that `memleak matrix` runs on released versions.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

import pytest_memleak
from tests.conftest import Records

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

LOADS = Path(pytest_memleak.__file__).parent / "cases" / "fsdp_loads.py"
COMMITS = "test_no_rank_commits_the_model"
NAN = "test_no_rank_holds_nan"
BUFFERS = "test_persistent_buffers_are_rank_0s"
EXPERTS = "test_experts_are_put_together_once"
OPTIMIZERS = "test_optimizers_know_each_parameter"
EMPTY = 'pytest.mark.memleak_bug("fsdp_init", flavour="empty_like")'
ZEROS = 'pytest.mark.memleak_bug("fsdp_init", flavour="zeros_like")'
FIX = 'pytest.mark.memleak_fix("fsdp_init")'

Loads = Callable[..., pytest.RunResult]


@pytest.fixture
def loads(pytester: pytest.Pytester) -> Loads:
    """Runs some of the tests under these marks."""

    def run(only: str, *marks: str) -> pytest.RunResult:
        text = f"{LOADS.read_text(encoding='utf-8')}\npytestmark = [{', '.join(marks)}]\n"
        pytester.makepyfile(test_loads=text)
        arguments = ("-p", "no:cacheprovider", "--gpu-backend=cpu", "--memleak-json=out.json", "-k", only)
        return pytester.runpytest_subprocess(*arguments)

    return run


def verdicts(test: dict[str, Any]) -> dict[int, str]:
    return {result["rank"]: result["verdict"] for result in test["results"]}


def test_the_rank_that_waits_commits_the_model(loads: Loads, records: Records) -> None:
    loads(COMMITS, ZEROS).assert_outcomes(failed=1)
    (test,) = records().values()
    assert verdicts(test) == {0: "pass", 1: "fail"}


def test_the_rank_that_waits_holds_nan(loads: Loads, records: Records) -> None:
    loads(NAN, EMPTY).assert_outcomes(failed=1)
    (test,) = records().values()
    assert verdicts(test) == {0: "pass", 1: "fail"}
    (message,) = (result["message"] for result in test["results"] if result["verdict"] == "fail")
    assert "no_nan FAILED: model.embed_tokens.weight: 100 % of 1,048,576 values are NaN" in message


@pytest.mark.skipif(
    not SpecifierSet("<=1.15.0").contains(metadata.version("accelerate")), reason="later releases may send buffers"
)
def test_buffers_as_they_are(loads: Loads) -> None:
    result = loads(BUFFERS)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*'Tensor' object has no attribute 'device_mesh'*"])


@pytest.mark.skipif(
    not SpecifierSet(">=5.4,<=5.24.0").contains(metadata.version("transformers")),
    reason="before, ranks that wait were other; later releases may be right",
)
def test_experts_as_they_are_and_mended(loads: Loads, records: Records) -> None:
    loads(EXPERTS).assert_outcomes(failed=1)
    (test,) = records().values()
    (whole,) = (one for one in test["results"] if one["rank"] is None)
    loads(EXPERTS, FIX).assert_outcomes(passed=1)
    (test,) = records().values()
    (mended,) = (one for one in test["results"] if one["rank"] is None)
    assert mended["measured"] < 0.6 * whole["measured"]  # one of two ranks


def test_mended(loads: Loads) -> None:
    loads(f"{COMMITS} or {BUFFERS} or {OPTIMIZERS}", ZEROS, FIX).assert_outcomes(passed=3)


def test_mended_where_values_were_anything(loads: Loads) -> None:
    loads(NAN, EMPTY, FIX).assert_outcomes(passed=1)
