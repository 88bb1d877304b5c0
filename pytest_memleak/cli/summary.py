"""``memleak summary``: a stored run in the forms that CI shows. It sends nothing anywhere."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from pytest_memleak.errors import BadInput
from pytest_memleak.records.stored import read
from pytest_memleak.report.annotations import commands, no_commands
from pytest_memleak.report.markdown import markdown, no_results

_USAGE = 2
_ADDRESS = re.compile(r"https?://[^\s()<>\[\]]+")


def add_to(commands: Any) -> None:
    about = (
        "Prints the results of a run, as --memleak-json wrote them, as Markdown for a job's summary or for a comment, "
        "or as annotations. If they cannot be read it is that which is told. Exit status: 0 if they could, whatever "
        "the verdicts; else 2."
    )
    command = commands.add_parser("summary", help="a run's results for CI to show", description=about)
    command.add_argument("results", type=Path, metavar="RESULTS", help="the file of --memleak-json")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--annotations", action="store_true", help="GitHub's ::error lines instead of Markdown")
    form.add_argument(
        "--comment", metavar="NAME", help="begin with a hidden line that says this name, to find it again"
    )
    command.add_argument("--page", metavar="URL", default="", help="link to the page of --memleak-html")
    command.add_argument(
        "--repository",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="the folder that annotations name files from (default: the working directory, where pytest was started)",
    )


def run(chosen: argparse.Namespace) -> tuple[str, int]:
    """What to print, and the exit status."""
    try:
        page, marker = _address(_written(chosen.page)), _marker(_written(chosen.comment))
    except BadInput as error:
        print(f"memleak summary: {error}", file=sys.stderr)
        return "", _USAGE
    try:
        stored = read(chosen.results)
    except BadInput as error:
        # Whoever shows this instead of an earlier run's results must not seem to have any.
        print(f"memleak summary: {error}", file=sys.stderr)
        return (no_commands(str(error)) if chosen.annotations else no_results(str(error), marker)), _USAGE
    if chosen.annotations:
        repository = Path(_written(chosen.repository))
        return "\n".join(commands(stored, run_in=Path(), repository=repository)), 0
    return markdown(stored, page=page, marker=marker), 0


def _written(value: Any) -> Any:
    """What stands behind an option's "=": older releases of Python make an empty list of ``--``."""
    return "--" if value == [] else value


def _address(text: str) -> str:
    if text and not _ADDRESS.fullmatch(text):
        raise BadInput(f"--page {text!r}: give an address that begins with https://")
    return text


def _marker(name: str | None) -> str:
    """Whatever a job is called: nothing in it ends the HTML comment that it stands in."""
    if name is None:
        return ""
    plain = " ".join(re.sub(r"[^\w./ -]", " ", name).replace("--", " ").split())
    if not plain:
        raise BadInput(f"--comment {name!r}: give a name with a letter or a number in it")
    return f"pytest-memleak: {plain}"
