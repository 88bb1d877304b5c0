"""What the ranks of a test had to say: the lines each wrote, how its process ended, and what it was doing then."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_memleak.ranks import inside, stacks
from pytest_memleak.ranks.job import Job
from pytest_memleak.ranks.launch import Ended

PHASES = ("setup", "call", "teardown")
_LAST_LINES = 12
_CRASHED = "Fatal Python error"
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)


@dataclass
class Told:
    """By one rank."""

    rank: int
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By phase, as pytest makes them to be sent."""
    subreports: list[dict[str, Any]] = field(default_factory=list)
    """Of the parts of its body (subtests)."""
    warnings: list[dict[str, Any]] = field(default_factory=list)
    began: str = ""
    """The last phase that it began; empty if it did not get to the test."""
    raised: str = ""
    """What ended that phase."""
    ended: bool = False
    """It said all that it had to say."""
    failed_before: str = ""
    """Why it did not get to the test, in pytest's words."""
    found: bool = True
    """The test was among what it collected."""
    exit_code: int | None = None
    """Of its process, if that is known; negative: a signal."""
    hung: bool = False
    """Its time was up."""
    lingered: bool = False
    """It had said all, and its process did not end."""
    internal: str = ""
    """An error of pytest's own."""
    state: str = ""
    """What the system said of it then."""
    before: tuple[int, ...] = (0, 0)
    """How many bytes it had printed before it began with the test."""
    doing: str = ""
    """Where it was when it was stopped."""
    out: bytes = b""
    err: bytes = b""

    @property
    def crashed_after(self) -> bool:
        """Its process did not end as one does, when the test was over: a destructor, a thread, a library's exit."""
        return self.ended and -(self.exit_code or 0) in _CRASHES

    @property
    def died_in(self) -> str | None:
        """The phase that it has no more to say of."""
        if self.ended:
            return "teardown" if self.crashed_after or self.lingered else None
        if self.began and self.began not in self.reports:
            return self.began  # reports may be held back until the teardown
        for when in PHASES:
            not_run = when == "call" and self.reports.get("setup", {}).get("outcome") in ("failed", "skipped")
            if when not in self.reports and not not_run:
                return when
        return "teardown"  # all was reported, and the process went on to something else


def read(job: Job, ended: Ended) -> list[Told]:
    return [_read(job, rank, ended) for rank in range(job.size)]


def _read(job: Job, rank: int, ended: Ended) -> Told:
    told = Told(rank, exit_code=ended.codes.get(rank), out=ended.out.get(rank, b""), err=ended.err.get(rank, b""))
    for line in _lines(job.told(rank)):
        kind = line["kind"]
        if kind == inside.BEGIN:
            if not told.began:
                told.before = tuple(line["printed"])
            told.began = line["when"]
        elif kind == inside.RAISED:
            told.raised = line["text"]
        elif kind == inside.REPORT:
            told.reports[line["data"]["when"]] = line["data"]
        elif kind == inside.WARNING:
            told.warnings.append(line)
        elif kind == inside.SUBREPORT:
            told.subreports.append(line["data"])
        elif kind == inside.INTERNAL:
            told.internal = told.internal or line["text"]
        elif kind == inside.COLLECTED:
            told.failed_before = told.failed_before or line["failed"]
            told.found = bool(line["found"])
        elif kind == inside.END:
            # pytest may end well without having found the test, and not so well after it.
            told.ended = "teardown" in told.reports and not told.internal
    told.hung, told.state = rank in ended.hung and not told.ended, ended.hung.get(rank, "")
    told.lingered = rank in ended.lingering
    told.doing = stacks.doing(_text(job.stacks(rank)))
    return told


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines alone: the last one of a rank that was killed may be half written."""
    found = []
    for line in _text(path).splitlines(keepends=True):
        if line.endswith("\n"):
            found.append(json.loads(line))
    return found


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def why(told: Told, job: Job, others: Sequence[Told], oom_kills: int) -> str:
    """Of a rank that did not come to its end: what became of it, and what is known of the reason."""
    name = f"rank {told.rank} of {job.size}"
    at = "when the test was over" if "teardown" in told.reports else _WHEN[told.died_in or "teardown"]
    if not told.began:
        at = "before it got to the test"
    doing = f": {told.doing}" if told.doing else f": {told.state}" if told.state else ""
    if told.hung:
        verb = "waited for others" if stacks.collective(told.doing) else "hung"
        return (
            f"{name} {verb} {at}{doing}\n  it did not end within {job.timeout:g} s ({job.time_is})"
            f"{_disagreement(told, others)}"
        )
    code = told.exit_code
    if told.lingered:
        return (
            f"{name} did not end when the test was over: a thread, a child or an exit handler of the program goes on\n"
            f"  its process was ended after {job.timeout:g} s ({job.time_is})"
        )
    if told.internal:
        return f"{name} failed {at}\n{told.internal}"
    if told.failed_before and not told.found:
        return f"{name} did not get to the test: it could not be collected\n{told.failed_before}"
    if not told.found:
        return (
            f"{name} did not find the test {job.nodeid!r} in {job.path}: the names of its parameters must be the same "
            "in every process"
        )
    if code is not None and is_to_blame(told, others):
        if code < 0:
            oom = "\n  the kernel's OOM killer struck meanwhile: the machine's memory did not suffice"
            struck = -code == signal.SIGKILL and oom_kills > 0
            return f"{name} was killed by {_signal(-code)} {at}{oom if struck else _last(told)}"
        raised = f": it had raised {told.raised}" if told.raised else ""  # what ends all of pytest has no report
        return f"{name} ended {at}, with exit status {code}{raised}{_last(told)}"
    culprits = [other for other in others if other.rank != told.rank and _ended_badly(other)]
    because = f" when {_names(culprits)} had failed" if culprits else ""
    return f"{name} was stopped {at}{because}{f': it had raised {told.raised}' if told.raised else doing}"


_WHEN = {
    "setup": "in the set-up of its fixtures",
    "call": "in its body",
    "teardown": "in the teardown of its fixtures",
}


def is_to_blame(told: Told, others: Sequence[Told]) -> bool:
    """It died or hung of itself, and was not just stopped with the others."""
    theirs = [other for other in others if other.rank != told.rank and not _was_told_to_stop(other)]
    if told.hung:
        return not stacks.collective(told.doing) and not any(other.ended and other.exit_code for other in theirs)
    if told.ended:
        return told.crashed_after or told.lingered
    if told.internal or not told.found:
        return True
    if told.exit_code is None:
        return False
    if _was_told_to_stop(told):
        return not any(map(_ended_badly, theirs))
    return not any(_had_it_stopped(other, told) for other in theirs)


def _had_it_stopped(other: Told, told: Told) -> bool:
    """The agent stops all when one fails, and one that has a handler of its own for SIGTERM leaves no word of that.

    Had it failed before the other one did, that would have been stopped: who has said all waits for the rest. One that
    leaves with status 0 stops nobody.
    """
    if not (other.exit_code and told.exit_code):
        return False
    return other.ended or (told.exit_code == -signal.SIGKILL != other.exit_code)


def _was_told_to_stop(told: Told) -> bool:
    return told.exit_code == -signal.SIGTERM or bool(told.doing)


def _ended_badly(told: Told) -> bool:
    if any(report["outcome"] == "failed" for report in told.reports.values()) or told.hung:
        return True
    if told.exit_code is None or _was_told_to_stop(told):
        return False
    return told.exit_code != 0 or not told.ended


def _disagreement(told: Told, others: Sequence[Told]) -> str:
    """Ranks that wait in different collectives wait for ever."""
    waiting: dict[str, list[int]] = {}
    for one in others:
        if collective := stacks.collective(one.doing):
            waiting.setdefault(collective, []).append(one.rank)
    if len(waiting) > 1 and told.rank > min(rank for ranks in waiting.values() for rank in ranks):
        return ""  # another one has said it
    if len(waiting) < 2:
        missing = [one for one in others if one.ended and one.rank != told.rank]
        return f"\n  {_names(missing)} had come to the end meanwhile" if missing else ""
    each = "; ".join(f"{_numbers(ranks)} in {collective}" for collective, ranks in waiting.items())
    return f"\n  the ranks disagree on the collective: {each} (TORCH_DISTRIBUTED_DEBUG=DETAIL checks every one)"


def _names(ranks: Sequence[Told]) -> str:
    return _numbers([told.rank for told in ranks])


def _numbers(ranks: Sequence[int]) -> str:
    word = "rank" if len(ranks) == 1 else "ranks"
    return f"{word} {', '.join(map(str, sorted(ranks)))}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last(told: Told) -> str:
    """What it printed in the end: where the reason is, if there is one to be had."""
    err = printed(told)["stderr"]
    if _CRASHED in err and (doing := stacks.doing(err[err.index(_CRASHED) :])):
        return f": {doing}"
    lines = [line for line in err.splitlines() if line.strip()][-_LAST_LINES:]
    return "".join(f"\n  | {line}" for line in lines)


def oom_kills() -> int:
    """How often the kernel's OOM killer has struck so far; only differences mean something."""
    return _counted(Path("/proc/vmstat"), "oom_kill") + _counted(Path("/sys/fs/cgroup/memory.events"), "oom_kill")


def _counted(path: Path, name: str) -> int:
    try:
        fields = dict(line.split() for line in path.read_text(encoding="ascii").splitlines())
        return int(fields.get(name, 0))
    except (OSError, ValueError):
        return 0


def printed(told: Told) -> Mapping[str, str]:
    return {"stdout": _decoded(told.out[told.before[0] :]), "stderr": _decoded(told.err[told.before[1] :])}


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", errors="replace")
