"""A broken peak on a real card: the lines from the allocator's history, and who held what."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import Run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TESTS = """
import time
import pytest, torch

def helper(count):
    return [torch.empty(8, 1024, 1024, device="cuda") for _ in range(count)]

@pytest.mark.max_peak("100MiB")
def test_piles_up():
    pile = helper(5)
    time.sleep(0.2)  # a level is read every few milliseconds
    del pile

@pytest.mark.max_peak("100MiB")
@pytest.mark.gpu_cap("200MiB")
def test_is_refused():
    pile = []
    while True:
        pile += helper(1)

@pytest.mark.max_peak("1GiB")
def test_passes():
    helper(2)
"""


@pytest.mark.parametrize("when", ["auto", "always", "rerun", "never"])
def test_lines_and_holders(run_on_gpu: Run, when: str) -> None:
    result = run_on_gpu(TESTS, f"--memleak-explain={when}")
    result.assert_outcomes(passed=1, failed=2)
    text = " ".join(result.stdout.str().split())
    assert ("alive at the peak, by the line that allocated it" in text) == (when in ("always", "rerun"))
    assert ("160 MiB in 5 blocks test_it.py:5" in text) == (when in ("always", "rerun"))
    assert ("local 'pile[" in text) == (when != "never")
    assert ("which were refused; who held it then" in text) == (when != "never")
    assert ("as of a second run" in text) == (when == "rerun")


def test_the_program_s_own_history_is_its_own_again(run_on_gpu: Run) -> None:
    result = run_on_gpu(
        """
        import pytest, torch

        @pytest.mark.max_peak("1MiB")
        def test_breaks():
            torch.empty(4, 1024, 1024, device="cuda")

        def test_no_history_is_kept():
            torch.empty(4, 1024, 1024, device="cuda")
            assert not any(torch.cuda.memory._snapshot()["device_traces"])
        """,
        "--memleak-explain=always",
    )
    result.assert_outcomes(passed=1, failed=1)
