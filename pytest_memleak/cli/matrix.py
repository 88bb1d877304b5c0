"""``memleak matrix``: tests against released versions of packages, and what came of each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pytest_memleak.cli import trials
from pytest_memleak.errors import BadInput, MemleakError
from pytest_memleak.releases.case import Case, find
from pytest_memleak.releases.cell import Cell, Outcome, Run
from pytest_memleak.releases.planning import Known, crossed, of_cases, releases_of, varied
from pytest_memleak.releases.table import as_json, as_markdown, as_text


def add_to(commands: Any) -> None:
    about = (
        "Runs the cases of this package, or any tests, against released versions of packages, each set of versions in "
        "a throw-away environment. What stands after -- goes to pytest. Exit status: 0 if all is as expected (with "
        "--vary: if every test passed), 1 if not, 2 for a wrong command line."
    )
    command = commands.add_parser("matrix", help="tests against released versions", description=about)
    command.add_argument("--case", action="append", default=[], metavar="NAME", help="one of ours, or a .toml file")
    command.add_argument("--quick", action="store_true", help="one good and one bad release of each case")
    command.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="PKG==A,B",
        help="releases to try, also as a specifier (PKG>=5.0,<5.6); several packages are crossed, and a case's own "
        "releases with those of other packages",
    )
    command.add_argument("--minors", action="store_true", help="of a specifier, the last patch of each minor release")
    trials.add_options(command)
    command.add_argument("--markdown", type=Path, metavar="PATH", help="write the table as Markdown, too")


def run(chosen: argparse.Namespace) -> tuple[str, int]:
    """What to print, and the exit status. What goes on meanwhile is told on stderr."""
    try:
        uv, known = trials.prepare(chosen)
        runs, cases = _planned(chosen, known)
        with trials.workshop(chosen, uv, len(runs)) as shop:
            outcomes = shop.run(runs)
    except MemleakError as error:
        trials.complain("matrix", error)
        return "", trials.USAGE if isinstance(error, BadInput) else trials.NOT_FINE
    cells = _missing_named(outcomes)
    if all(outcome.complete for outcome in outcomes):
        shop.store.forget(runs)
    titles = {case.name: case.title for case in cases}
    more = {"interrupted": shop.interrupted}
    written = trials.write(chosen.json, as_json(cells, more))
    written &= trials.write(chosen.markdown, as_markdown(cells, titles).encode())
    text = as_text(cells, titles, trials.columns())
    if shop.interrupted:
        return f"{text}\ninterrupted: the same call goes on from here", trials.INTERRUPTED
    fine = bool(cells) and all(cell.fine for cell in cells) and written
    return text, trials.FINE if fine else trials.NOT_FINE


def _planned(chosen: argparse.Namespace, known: Known) -> tuple[list[Run], list[Case]]:
    base = trials.base(chosen)
    if chosen.case and chosen.pytest:
        raise BadInput(f"-- {' '.join(chosen.pytest)}: a case says itself which test it runs")
    if not chosen.vary:
        if chosen.pytest:
            raise BadInput(f"-- {' '.join(chosen.pytest)}: name the releases to run it against with --vary")
        if told := [f"--{name}" for name in ("pre", "yanked", "minors") if getattr(chosen, name)]:
            raise BadInput(f"{told[0]} is for the releases of --vary: a case says itself which ones it runs against")
        cases = find(chosen.case)
        return of_cases(cases, known, base, quick=chosen.quick), cases
    if chosen.quick:
        raise BadInput("--quick chooses among a case's own releases, and --vary names them")
    if not (chosen.pytest or chosen.case):
        raise BadInput(
            "--vary needs tests: memleak matrix --vary transformers==5.1.0,5.2.0 -- tests/test_load.py; or a case: "
            "--case NAME"
        )
    releases = _varied(chosen, known)
    if chosen.pytest:
        return crossed(releases, chosen.pytest, base), []
    cases = find(chosen.case)
    return of_cases(cases, known, base, releases=releases), cases


def _varied(chosen: argparse.Namespace, known: Known) -> dict[str, list[str]]:
    """Releases by package, in the order of the command line."""
    wanted = [varied(text) for text in chosen.vary]
    if chosen.minors and not any(one.specifier for one in wanted):
        raise BadInput("--minors chooses among the releases of a specifier: write --vary 'transformers>=5.0,<5.6'")
    releases: dict[str, list[str]] = {}
    for one in wanted:
        if one.package in releases:
            raise BadInput(f"{one.package} is varied twice: write all its releases in one --vary")
        releases[one.package] = releases_of(one, known, pre=chosen.pre, yanked=chosen.yanked, minors=chosen.minors)
    return releases


def _missing_named(outcomes: list[Outcome]) -> list[Cell]:
    """All cells, and for a test that was collected with some versions only, one for each of the others."""
    tests: dict[str, None] = {}
    for outcome in outcomes:
        if outcome.run.case is None and outcome.collected:
            tests |= dict.fromkeys(cell.test for cell in outcome.cells)
    cells: list[Cell] = []
    for outcome in outcomes:
        cells += outcome.cells
        if outcome.run.case is None and outcome.collected:
            there = {cell.test for cell in outcome.cells}
            cells += [
                Cell(outcome.run.environment.versions, test, "not-run", "it was not collected with these versions")
                for test in tests
                if test not in there
            ]
    return cells
