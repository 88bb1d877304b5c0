"""The options as data: one each in its three spellings, with what `pytest --help` says of it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pytest_memleak.budget.tolerance import OF_A_CARD, OF_THE_CPU
from pytest_memleak.settings.choices import CARD_TIMEOUT, RANKS_TIMEOUT


@dataclass(frozen=True)
class Option:
    """One option in its three spellings: flag, environment variable, ini."""

    name: str
    flag: str
    metavar: str
    help: str

    @property
    def ini(self) -> str:
        return f"memleak_{self.name}"

    @property
    def environment(self) -> str:
        return f"MEMLEAK_{self.name.upper()}"

    @property
    def dest(self) -> str:
        return f"memleak_{self.name}"


OPTIONS = (
    Option(
        "gpu_cap",
        "--gpu-cap",
        "SIZE",
        "Give the tests a card of SIZE (16G, 16GiB, 16GB): a real card is capped and says so to whoever asks; "
        "without one the tests get a simulated card of that size.",
    ),
    Option(
        "gpu_backend",
        "--gpu-backend",
        "BACKEND",
        "The card tests run on: auto (a real one if there is one; without one a simulated one for tests with a cap, "
        "else the CPU), real (an error without one), simulated or simulated:CARD (h100, 2xh100, rtx3090 …), cpu.",
    ),
    Option(
        "mode",
        "--memleak-mode",
        "MODE",
        "enforce: broken promises fail tests. report: every test's peak and leak are measured and shown, none fails.",
    ),
    Option(
        "explain",
        "--memleak-explain",
        "WHEN",
        "What a broken peak is explained from. auto (default): who held what when it broke, and the lines that "
        "allocated large blocks; always: the lines of all blocks; rerun: a test whose peak broke runs once more for "
        "that, side effects included; never: neither.",
    ),
    Option("json", "--memleak-json", "PATH", "Write every result to PATH as JSON (schema pytest-memleak/1)."),
    Option(
        "html",
        "--memleak-html",
        "PATH",
        "Write a page to PATH that shows every test's verdict, its memory over time and what held it; works offline "
        "(needs the extra html).",
    ),
    Option(
        "progress",
        "--memleak-progress",
        "WHEN",
        "auto (default): on a terminal, a measured test that takes long shows its memory while it runs. never: nothing "
        "is shown before its result.",
    ),
    Option(
        "snapshots",
        "--memleak-snapshots",
        "FOLDER",
        "On CUDA, save torch's own memory snapshot of each test whose memory was recorded to FOLDER, for "
        "https://pytorch.org/memory_viz.",
    ),
    Option(
        "ranks_timeout",
        "--memleak-ranks-timeout",
        "SECONDS",
        f"How long the ranks of a test may take until they count as hung (default {RANKS_TIMEOUT:g}).",
    ),
    Option(
        "share",
        "--memleak-share",
        "HOW",
        "With pytest-xdist each worker has one of the caller's GPUs, and each test reserves what it says it needs of "
        "it. A test that says nothing reserves equal (default): as much as each of the card's workers can have; whole: "
        "all of it; or SIZE. off: neither cards nor memory are given out.",
    ),
    Option(
        "card_timeout",
        "--memleak-card-timeout",
        "SECONDS",
        f"How long a test waits for memory of a GPU that others have reserved (default {CARD_TIMEOUT:g}).",
    ),
    Option(
        "baseline",
        "--memleak-baseline",
        "PATH",
        "Hold what each test takes of the card against the file PATH, which is committed: more fails the test.",
    ),
    Option(
        "update",
        "--memleak-update",
        "WHAT",
        "Change that file: new (entries that are missing), raise (peaks that rose), trim (peaks that fell, entries "
        "that nobody uses), all; several with commas.",
    ),
    Option(
        "baseline_tolerance",
        "--memleak-baseline-tolerance",
        "MORE",
        "How far a peak may lie above the recorded one: 2%, 1MiB, 2% + 1MiB (default: nothing on a simulated card, "
        f"{OF_A_CARD} on a real one, {OF_THE_CPU} on the CPU).",
    ),
    Option("max_peak", "--memleak-max-peak", "LIMIT", "Default max_peak for all tests without the marker."),
    Option(
        "max_host_peak", "--memleak-max-host-peak", "LIMIT", "Default max_host_peak for all tests without the marker."
    ),
    Option(
        "max_leak", "--memleak-max-leak", "LIMIT", "Default max_leak for all tests without the marker (0: nothing)."
    ),
)
DEFAULT_CHECKS = ("max_peak", "max_host_peak", "max_leak")


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("memleak", "memory of PyTorch programs (pytest-memleak)")
    for option in OPTIONS:
        # No argparse default: it would hide what environment and ini say. And a % is argparse's own.
        text = option.help.replace("%", "%%")
        group.addoption(option.flag, dest=option.dest, metavar=option.metavar, default=None, help=text)
        parser.addini(option.ini, f"{option.flag} as a setting; environment: {option.environment}.", default=None)
