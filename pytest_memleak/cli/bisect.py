"""``memleak bisect``: the release that changed a test's verdict."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from packaging.version import Version

from pytest_memleak.cli import trials
from pytest_memleak.errors import BadInput, MemleakError
from pytest_memleak.releases.bisecting import Answer, bisect
from pytest_memleak.releases.case import is_release
from pytest_memleak.releases.cell import Cell, Outcome, Run, Verdict
from pytest_memleak.releases.planning import Known, between, one_run
from pytest_memleak.releases.running import Workshop
from pytest_memleak.releases.table import as_json, as_text

_WORST: tuple[Verdict, ...] = ("fail", "inconclusive", "not-run", "pass")


class _Interrupted(Exception):
    pass


def add_to(commands: Any) -> None:
    about = (
        "Finds the release of a package that changed a test's verdict, in as few runs as it takes, and runs both sides "
        "of the change once more. What stands after -- goes to pytest. Exit status: 0 if the change was found, 1 if "
        "not, 2 for a wrong command line."
    )
    command = commands.add_parser("bisect", help="which release changed a test's verdict", description=about)
    command.add_argument("package", metavar="PACKAGE")
    command.add_argument("--good", required=True, metavar="RELEASE", help="one on which the test passes")
    command.add_argument("--bad", required=True, metavar="RELEASE", help="one on which it fails; may be the older one")
    command.add_argument(
        "--among", default=None, metavar="A,B,C", help="the releases between them, instead of those that the index has"
    )
    trials.add_options(command)


def run(chosen: argparse.Namespace) -> tuple[str, int]:
    try:
        _check(chosen)
        uv, known = trials.prepare(chosen)
        releases = _releases(chosen, known)
        asked = _Asked(chosen, releases)
        with trials.workshop(chosen, uv, None) as shop:
            asked.shop = shop
            try:
                answer = bisect(releases, asked, fixed=Version(chosen.bad) < Version(chosen.good))
            except _Interrupted:
                answer = None
    except MemleakError as error:
        trials.complain("bisect", error)
        return "", trials.USAGE if isinstance(error, BadInput) else trials.NOT_FINE
    cells = [cell for outcome in asked.outcomes for cell in outcome.cells]
    result = None if answer is None else _result(answer)
    written = trials.write(chosen.json, as_json(cells, {"interrupted": answer is None, "result": result}))
    table = as_text(sorted(cells, key=lambda cell: Version(cell.versions[0][1])), {}, trials.columns())
    if answer is None:
        return f"{table}\ninterrupted: the same call goes on from here", trials.INTERRUPTED
    shop.store.forget([outcome.run for outcome in asked.outcomes])
    said = in_words(chosen.package, answer, releases)
    return f"{table}\n\n{said}", trials.FINE if answer.kind == "changed" and written else trials.NOT_FINE


class _Asked:
    """Runs what the search asks for, and keeps what came of it."""

    def __init__(self, chosen: argparse.Namespace, releases: Sequence[str]) -> None:
        self._chosen = chosen
        self._releases = releases
        self.outcomes: list[Outcome] = []
        self.shop: Workshop

    def __call__(self, wanted: Sequence[tuple[str, int]]) -> list[Verdict]:
        base = trials.base(self._chosen)
        runs: list[Run] = [
            one_run({self._chosen.package: release}, self._chosen.pytest, base, attempt) for release, attempt in wanted
        ]
        outcomes = self.shop.run(runs)
        self.outcomes += outcomes
        if self.shop.interrupted:
            raise _Interrupted
        return [worst(outcome.cells) for outcome in outcomes]


def worst(cells: Sequence[Cell]) -> Verdict:
    """Of all tests: one that fails makes the release a bad one, one that gave no verdict leaves it open."""
    return next((verdict for verdict in _WORST if any(cell.verdict == verdict for cell in cells)), "not-run")


def in_words(package: str, answer: Answer, releases: Sequence[str]) -> str:
    seen = {release: ", ".join(verdicts) for release, verdicts in answer.seen.items()}
    runs = sum(len(verdicts) for verdicts in answer.seen.values())
    sides = f"{package} {answer.before}: {seen[answer.before]}; {answer.after}: {seen[answer.after]}"
    lines = {
        "changed": f"{package} {answer.after} changed the verdict; each side was run twice",
        "between": f"one of {package} {', '.join(answer.suspects)} changed the verdict, which one is not known",
        "flaky": "the test is flaky: two runs with the same release differ, so no release is to blame",
        "ends": "nothing to search: the ends do not have the verdicts that were promised",
        "unconfirmed": f"{package} {answer.after} seems to have changed the verdict, but a second run gave none",
    }
    said = [lines[answer.kind], sides, f"{runs} runs for {len(releases)} releases"]
    if answer.stepped_over and answer.kind != "ends":
        said.append(f"stepped over, since they gave no verdict: {', '.join(answer.stepped_over)}")
    return "\n".join(said)


def _result(answer: Answer) -> dict[str, Any]:
    return {
        "kind": answer.kind,
        "before": answer.before,
        "after": answer.after,
        "verdicts": answer.seen,
        "stepped_over": list(answer.stepped_over),
        "suspects": list(answer.suspects),
    }


def _check(chosen: argparse.Namespace) -> None:
    for name in ("good", "bad"):
        if not is_release(getattr(chosen, name)):
            raise BadInput(f"--{name} {getattr(chosen, name)!r} is no release: write one such as 5.1.0")
    if Version(chosen.good) == Version(chosen.bad):
        raise BadInput(f"--good and --bad are both {chosen.good}: there is nothing between them")
    if not chosen.pytest:
        raise BadInput("which test? memleak bisect transformers --good 5.1.0 --bad 5.6.2 -- tests/x.py::test")


def _releases(chosen: argparse.Namespace, known: Known) -> list[str]:
    if chosen.among is None:
        return between(known(chosen.package), chosen.good, chosen.bad, pre=chosen.pre, yanked=chosen.yanked)
    listed = [one.strip() for one in chosen.among.split(",")]
    if wrong := [one for one in listed if not is_release(one)]:
        raise BadInput(f"--among {chosen.among!r}: {wrong[0]!r} is no release: write 5.2.0,5.3.0")
    ends = sorted((Version(chosen.good), Version(chosen.bad)))
    if outside := [one for one in listed if not ends[0] <= Version(one) <= ends[1]]:
        raise BadInput(f"--among {chosen.among!r}: {outside[0]} does not lie between {ends[0]} and {ends[1]}")
    inside = {Version(one) for one in listed} - set(ends)
    return [str(one) for one in (ends[0], *sorted(inside), ends[1])]
