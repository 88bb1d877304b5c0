"""Flags, environment and ini, read once into one frozen object that says where each value came from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from pytest_memleak.errors import BadInput

ENFORCE = "enforce"
REPORT = "report"
MODES = (ENFORCE, REPORT)
AUTO, ALWAYS, RERUN, NEVER = "auto", "always", "rerun", "never"
EXPLAIN = (AUTO, ALWAYS, RERUN, NEVER)
SIMULATED = "simulated"
PROGRESS = (AUTO, NEVER)
RANKS_TIMEOUT = 300.0
BACKENDS = ("auto", "real", SIMULATED, "cpu")


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
    Option("max_peak", "--memleak-max-peak", "LIMIT", "Default max_peak for all tests without the marker."),
    Option(
        "max_host_peak", "--memleak-max-host-peak", "LIMIT", "Default max_host_peak for all tests without the marker."
    ),
    Option(
        "max_leak", "--memleak-max-leak", "LIMIT", "Default max_leak for all tests without the marker (0: nothing)."
    ),
)
DEFAULT_CHECKS = ("max_peak", "max_host_peak", "max_leak")


@dataclass(frozen=True)
class Given:
    """A value as it was typed, and where."""

    text: str
    source: str


@dataclass(frozen=True)
class Settings:
    cap: int | None = None
    cap_given: Given | None = None
    backend: str = "auto"
    backend_given: Given | None = None
    cards: str = ""
    """What is to be simulated, if that was named: ``h100``, ``2xh100``."""
    mode: str = ENFORCE
    explain: str = AUTO
    json: str | None = None
    html: str | None = None
    progress: str = AUTO
    snapshots: str | None = None
    ranks_timeout: float = RANKS_TIMEOUT
    defaults: Mapping[str, Given] = ()  # type: ignore[assignment]  # replaced in read(); a frozen class needs some default

    @property
    def reporting(self) -> bool:
        return self.mode == REPORT


SETTINGS = pytest.StashKey[Settings]()
"""Where a run's settings are kept, on its config."""


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("memleak", "memory of PyTorch programs (pytest-memleak)")
    for option in OPTIONS:
        # No argparse default: it would hide what environment and ini say.
        group.addoption(option.flag, dest=option.dest, metavar=option.metavar, default=None, help=option.help)
        parser.addini(option.ini, f"{option.flag} as a setting; environment: {option.environment}.", default=None)


def read(config: pytest.Config) -> Settings:
    """The settings of this run; what cannot be read is a usage error that names where it was written."""
    from pytest_memleak.budget.expression import parse
    from pytest_memleak.budget.sizes import parse_size

    given = {option.name: value for option in OPTIONS if (value := _given(config, option)) is not None}

    def checked(name: str, read: Any) -> Any:
        return _checked(given[name], read)

    for name in DEFAULT_CHECKS:
        if name in given:
            checked(name, lambda text, zero=name == "max_leak": parse(text, zero=zero))
    backend, cards = checked("gpu_backend", _backend) if "gpu_backend" in given else ("auto", "")
    explain = checked("explain", _one_of(EXPLAIN)) if "explain" in given else AUTO
    if "snapshots" in given and explain not in (ALWAYS, RERUN):
        raise pytest.UsageError(
            f"{given['snapshots'].source}: a snapshot shows what was recorded, and with --memleak-explain={explain} "
            "nothing is, on CUDA: add --memleak-explain=always (for all tests) or rerun (for tests whose peak broke)"
        )

    def path(name: str) -> str | None:
        # As text: a slash at its end says that a folder is meant, and a Path would drop it.
        return os.path.join(config.invocation_params.dir, given[name].text) if name in given else None

    return Settings(
        cap=checked("gpu_cap", parse_size) if "gpu_cap" in given else None,
        cap_given=given.get("gpu_cap"),
        backend=backend,
        backend_given=given.get("gpu_backend"),
        cards=cards,
        mode=checked("mode", _one_of(MODES)) if "mode" in given else ENFORCE,
        explain=explain,
        json=path("json"),
        html=path("html"),
        progress=checked("progress", _one_of(PROGRESS)) if "progress" in given else AUTO,
        snapshots=path("snapshots"),
        ranks_timeout=checked("ranks_timeout", _seconds) if "ranks_timeout" in given else RANKS_TIMEOUT,
        defaults={name: given[name] for name in DEFAULT_CHECKS if name in given},
    )


def read_card(config: pytest.Config) -> Settings:
    """Of the settings what says which card there is: known before the first conftest is imported."""
    from pytest_memleak.budget.sizes import parse_size

    known = config.known_args_namespace
    given = {
        option.name: value
        for option in OPTIONS
        if option.name in ("gpu_backend", "gpu_cap") and (value := _given(config, option, known)) is not None
    }
    backend, cards = _checked(given["gpu_backend"], _backend) if "gpu_backend" in given else ("auto", "")
    return Settings(
        cap=_checked(given["gpu_cap"], parse_size) if "gpu_cap" in given else None,
        cap_given=given.get("gpu_cap"),
        backend=backend,
        backend_given=given.get("gpu_backend"),
        cards=cards,
    )


def _checked(given: Given, read: Any) -> Any:
    try:
        return read(given.text)
    except BadInput as error:
        raise pytest.UsageError(f"{given.source}: {error}") from None


def _given(config: pytest.Config, option: Option, known: Any = None) -> Given | None:
    if (flag := getattr(known or config.option, option.dest, None)) is not None:
        return Given(flag, f"{option.flag} on the command line")
    if environment := os.environ.get(option.environment):
        return Given(environment, f"the environment variable {option.environment}")
    if ini := config.getini(option.ini):
        place = f" in {config.inipath.name}" if config.inipath else ""
        return Given(str(ini), f"{option.ini}{place}")
    return None


def _one_of(allowed: tuple[str, ...]) -> Any:
    def read(text: str) -> str:
        if text not in allowed:
            raise BadInput(f"{text!r} is not one of {', '.join(allowed)}")
        return text

    return read


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise BadInput(f"{text!r} is not a number of seconds")
    return seconds


def _backend(text: str) -> tuple[str, str]:
    """The backend, and which cards it is to simulate."""
    from pytest_memleak.cards.simulated.profiles import cards_of

    backend, colon, cards = text.partition(":")
    if backend == SIMULATED:
        if colon and not cards:
            raise BadInput(f"{text!r} names no card after the colon")
        cards_of(cards)
    elif text not in BACKENDS:
        raise BadInput(f"{text!r} is not one of {', '.join(BACKENDS)}, simulated:CARD")
    return backend, cards
