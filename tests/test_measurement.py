"""What surrounds a test costs as little as its promises let it."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from pytest_memleak.budget.expression import parse
from pytest_memleak.cards.card import choose
from pytest_memleak.events import garbage
from pytest_memleak.measurement import Measurement
from pytest_memleak.plan import HostPeakBudget, LeakBudget, Plan
from tests.conftest import Run

_PLAN = Plan(
    leak=LeakBudget(parse("0", zero=True), "here"),
    host_peak=HostPeakBudget(parse("1TiB"), "here"),
)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each collection among all objects that the process has."""
    found: list[str] = []
    real = garbage.collect_everything

    def collect_everything() -> bool:
        found.append("looked")
        return real()

    monkeypatch.setattr(garbage, "collect_everything", collect_everything)
    return found


@pytest.mark.parametrize("leaks", [False, True])
def test_all_objects_are_looked_through_only_for_what_may_be_a_leak(looks: list[str], leaks: bool) -> None:
    measurement = Measurement(_PLAN, choose("cpu"), Path(__file__).parent)
    measurement.begin()
    try:
        measurement.body_begins()
        pages = mmap.mmap(-1, 8 * 1024**2, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for page in range(0, len(pages), mmap.PAGESIZE):
            pages[page] = 1
        kept = torch.ones(1024) if leaks else None
        measurement.body_ended()
        measurement.run_ended()
    finally:
        measurement.close()
    tensors, host = measurement.ends[0]
    assert host.grown("committed") >= len(pages) // 2
    assert (tensors.grown("allocated") > 0) is leaks
    assert looks == (["looked"] if leaks else [])
    pages.close()
    del kept


def test_all_objects_are_not_looked_through_for_a_test_that_failed(run_on_cpu: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        from pytest_memleak.events import garbage

        LOOKS = []
        REAL = garbage.collect_everything
        garbage.collect_everything = lambda: LOOKS.append(1) or REAL()

        def pytest_terminal_summary(terminalreporter):
            terminalreporter.write_line(f"looks: {len(LOOKS)}")
        """
    )
    result = run_on_cpu(
        """
        import pytest, torch
        KEPT = []

        def test_fails():
            held = torch.ones(1024)
            assert not held.any()

        def test_is_skipped():
            held = torch.ones(1024)
            pytest.skip("here")

        @pytest.mark.max_leak("1MiB", repeat=2)
        def test_grows():
            KEPT.append(torch.ones(1024))
        """,
        "--memleak-max-leak=0",
    )
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    # Of the last one: a warm-up and two runs.
    result.stdout.fnmatch_lines(["looks: 3"])
