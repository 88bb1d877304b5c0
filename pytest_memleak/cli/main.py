"""The command ``memleak``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from pytest_memleak.cli import bisect, doctor, matrix, predict, summary

_TAKE_PYTEST = ("matrix", "bisect")
_RUN = {
    "doctor": doctor.run,
    "predict": predict.run,
    "matrix": matrix.run,
    "bisect": bisect.run,
    "summary": summary.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status. Usage errors leave with status 2, as argparse does."""
    if hasattr(sys.stdout, "reconfigure"):
        # A driver's message may hold what the terminal's encoding lacks: better shown escaped than not at all.
        sys.stdout.reconfigure(errors="backslashreplace")
    said = list(sys.argv[1:] if arguments is None else arguments)
    for_pytest: list[str] = []
    if said[:1] and said[0] in _TAKE_PYTEST and "--" in said:
        # Parted here: what argparse makes of "--" before a command's arguments differs between releases of Python.
        at = said.index("--")
        said, for_pytest = said[:at], said[at + 1 :]
    chosen = _parser().parse_args(said)
    chosen.pytest = for_pytest
    try:
        text, status = _RUN[chosen.command](chosen)
    except KeyboardInterrupt:
        print("memleak: interrupted", file=sys.stderr)
        return 130  # as a shell has it
    try:
        if text:
            print(text, flush=True)
    except BrokenPipeError:
        # Whoever reads (head, less) has seen enough; without this, Python complains once more when it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="memleak", description="Memory of PyTorch programs in tests (pytest-memleak)."
    )
    parser.add_argument("--version", action="version", version=f"pytest-memleak {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    about = (
        "What can be measured on this machine, what cannot, and why. Exit status: 0 if a cap can be enforced, else 1."
    )
    command = commands.add_parser("doctor", help="what can be measured on this machine", description=about)
    command.add_argument("--json", action="store_true", help="print the same as data")
    for module in (predict, matrix, bisect, summary):
        module.add_to(commands)
    return parser


def _version() -> str:
    try:
        return metadata.version("pytest-memleak")
    except metadata.PackageNotFoundError:
        return "(not installed)"
