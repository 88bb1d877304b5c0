"""What became of each rank, from the lines that it wrote and the way its process ended: nothing is lost between."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from pytest_memleak.ranks import inside
from pytest_memleak.ranks.job import Job
from pytest_memleak.ranks.launch import Ended
from pytest_memleak.ranks.told import Told, is_to_blame, read, why

STACK = 'Current thread 0x1 (most recent call first):\n  File "/x/test_it.py", line 7 in test_it\n'


def report(when: str, outcome: str = "passed") -> dict[str, Any]:
    return {"kind": inside.REPORT, "data": {"when": when, "outcome": outcome}}


def begin(when: str) -> dict[str, Any]:
    return {"kind": inside.BEGIN, "when": when, "printed": [3, 4]}


COLLECTED = {"kind": inside.COLLECTED, "found": 1, "failed": ""}
SET_UP = [COLLECTED, begin("setup"), report("setup")]
CALLED = [*SET_UP, begin("call"), report("call")]
TORN = [*CALLED, begin("teardown"), report("teardown")]
WHOLE = [*TORN, {"kind": inside.END, "status": 0}]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(str(tmp_path), "test_it.py::test_it", "test_it.py", (), "", (), 2, 1, "gloo", 30.0)


def of(
    job: Job, *lines: list[dict[str, Any]], codes: dict[int, int] | None = None, hung: dict[int, str] | None = None
) -> list[Told]:
    for rank, written in enumerate(lines):
        job.told(rank).write_text("".join(json.dumps(line) + "\n" for line in written))
    return read(job, Ended(codes or {}, hung or {}, {}, {1: b"old\nlast words\n"}))


def said(told: list[Told], rank: int, job: Job, oom_kills: int = 0) -> str:
    return why(told[rank], job, told, oom_kills)


@pytest.mark.parametrize(
    ("lines", "phase", "where"),
    [
        ([], "setup", "before it got to the test"),
        (SET_UP[:2], "setup", "in the set-up of its fixtures"),
        (SET_UP, "call", "in its body"),
        (CALLED[:-1], "call", "in its body"),
        (CALLED, "teardown", "in the teardown of its fixtures"),
        (TORN, "teardown", "when the test was over"),
    ],
)
def test_a_rank_may_die_anywhere(job: Job, lines: list[dict[str, Any]], phase: str, where: str) -> None:
    told = of(job, WHOLE, lines, codes={1: -signal.SIGKILL})
    assert [one.died_in for one in told] == [None, phase]
    assert said(told, 1, job).startswith(f"rank 1 of 2 was killed by SIGKILL {where}")
    assert "\n  | last words" in said(told, 1, job)
    assert "OOM killer" in said(told, 1, job, oom_kills=1)


def test_a_set_up_that_failed_has_no_body(job: Job) -> None:
    lines = [COLLECTED, begin("setup"), report("setup", "failed"), begin("teardown"), report("teardown")]
    told = of(job, WHOLE, [*lines, {"kind": inside.END, "status": 1}])
    assert told[1].died_in is None
    assert of(job, WHOLE, lines[:-2])[1].died_in == "teardown"


def test_a_crash_after_the_test_is_told(job: Job) -> None:
    told = of(job, WHOLE, WHOLE, codes={1: -signal.SIGSEGV})
    assert told[1].died_in == "teardown"
    assert said(told, 1, job).startswith("rank 1 of 2 was killed by SIGSEGV when the test was over")
    ordinary = of(job, WHOLE, WHOLE, codes={1: 1})  # it waited for others after a failure
    assert ordinary[1].died_in is None


def test_pytest_may_end_well_and_have_found_nothing(job: Job) -> None:
    told = of(job, WHOLE, [{"kind": inside.COLLECTED, "found": 0, "failed": ""}, {"kind": inside.END, "status": 5}])
    assert told[1].died_in == "setup"
    assert "did not find the test" in said(told, 1, job)


def test_an_error_of_pytests_own_after_the_test(job: Job) -> None:
    broken = {"kind": inside.INTERNAL, "text": "INTERNALERROR> in a hook"}
    told = of(job, WHOLE, [*TORN, broken, {"kind": inside.END, "status": 3}])
    assert told[1].died_in == "teardown"
    assert said(told, 1, job) == "rank 1 of 2 failed when the test was over\nINTERNALERROR> in a hook"


def test_who_was_stopped_is_not_to_blame(job: Job) -> None:
    job.stacks(1).write_text(STACK)
    told = of(job, SET_UP, SET_UP, codes={0: -signal.SIGKILL, 1: -signal.SIGTERM})
    assert [is_to_blame(one, told) for one in told] == [True, False]
    assert said(told, 1, job) == "rank 1 of 2 was stopped in its body when rank 0 had failed: at /x/test_it.py:7"


def test_what_it_had_raised_is_told_of_one_that_was_stopped(job: Job) -> None:
    raised = {"kind": inside.RAISED, "text": "RuntimeError: Connection closed by peer"}
    told = of(job, SET_UP, [*SET_UP, begin("call"), raised], codes={0: 7, 1: -signal.SIGTERM})
    assert said(told, 1, job).endswith("when rank 0 had failed: it had raised RuntimeError: Connection closed by peer")


def test_what_ends_all_of_pytest_is_told(job: Job) -> None:
    raised = {"kind": inside.RAISED, "text": "Exit: enough"}
    told = of(job, WHOLE, [*SET_UP, begin("call"), raised], codes={0: 0, 1: 1})
    assert "ended in its body, with exit status 1: it had raised Exit: enough" in said(told, 1, job)


def test_one_that_leaves_without_a_failure_is_to_blame(job: Job) -> None:
    told = of(job, WHOLE, SET_UP, codes={0: 1, 1: 0})  # the other one missed it
    assert [is_to_blame(one, told) for one in told] == [False, True]
    assert said(told, 1, job).startswith("rank 1 of 2 ended in its body, with exit status 0")


@pytest.mark.parametrize(
    ("first", "code", "hung"), [(WHOLE, 1, False), (WHOLE, 1, True), (SET_UP, -signal.SIGSEGV, False)]
)
def test_one_that_did_not_heed_its_end_is_not_to_blame(
    job: Job, first: list[dict[str, Any]], code: int, hung: bool
) -> None:
    """It has a handler of its own for SIGTERM, and so left no word."""
    told = of(job, first, SET_UP, codes={0: code, 1: -signal.SIGKILL}, hung={1: ""} if hung else {})
    assert not is_to_blame(told[1], told)
    assert hung or said(told, 1, job).startswith("rank 1 of 2 was stopped in its body")


def test_a_signal_to_all_is_everybodys_death(job: Job) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        told = of(job, SET_UP, SET_UP, codes={0: -number, 1: -number})
        assert all(is_to_blame(one, told) for one in told)
        assert f"was killed by {number.name}" in said(told, 0, job)


def test_time_was_up(job: Job) -> None:
    job.stacks(0).write_text(STACK)
    told = of(job, SET_UP, SET_UP, codes={0: -9, 1: -9}, hung={0: "", 1: "its process is stopped (SIGSTOP)"})
    assert said(told, 0, job).startswith(
        "rank 0 of 2 hung in its body: at /x/test_it.py:7\n  it did not end within 30 s"
    )
    assert said(told, 1, job).startswith("rank 1 of 2 hung in its body: its process is stopped (SIGSTOP)")


def test_reports_may_be_held_back_until_the_teardown(job: Job) -> None:
    told = of(job, WHOLE, [COLLECTED, begin("setup"), begin("call")], codes={1: -9})
    assert told[1].died_in == "call"
    assert "killed by SIGKILL in its body" in said(told, 1, job)


def test_a_process_that_does_not_end_is_told(job: Job) -> None:
    told = of(job, WHOLE, WHOLE, codes={1: -9})
    assert told[1].died_in is None
    told = read(job, Ended({1: -9}, {}, {}, {}, frozenset({1})))
    assert told[1].died_in == "teardown"
    assert said(told, 1, job).startswith("rank 1 of 2 did not end when the test was over")


def test_half_a_line_is_no_line(job: Job) -> None:
    of(job, WHOLE, SET_UP)
    with job.told(1).open("a") as lines:
        lines.write('{"kind": "repo')
    told = read(job, Ended({1: -9}, {}, {}, {}))
    assert told[1].died_in == "call"
