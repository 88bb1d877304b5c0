"""A run's settings: everything that was said of it, read once into one frozen object."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from pytest_memleak.budget.tolerance import parse_tolerance
from pytest_memleak.records.baselines.ratchet import UPDATES
from pytest_memleak.records.baselines.terms import Terms
from pytest_memleak.settings import choices
from pytest_memleak.settings.choices import (
    ALWAYS,
    AUTO,
    CARD_TIMEOUT,
    ENFORCE,
    EQUAL,
    EXPLAIN,
    MODES,
    PROGRESS,
    RANKS_TIMEOUT,
    REPORT,
    RERUN,
    one_of,
    some_of,
)
from pytest_memleak.settings.given import Given, Said, said
from pytest_memleak.settings.options import DEFAULT_CHECKS, OPTIONS


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
    share: int | str = EQUAL
    """What a test under pytest-xdist that says nothing of its need reserves of a card: bytes, or one of SHARES."""
    share_given: Given | None = None
    card_timeout: float = CARD_TIMEOUT
    baseline: Terms | None = None
    defaults: Mapping[str, Given] = field(default_factory=dict)

    @property
    def reporting(self) -> bool:
        return self.mode == REPORT


SETTINGS = pytest.StashKey[Settings]()
"""Where a run's settings are kept, on its config."""


def read(config: pytest.Config) -> Settings:
    """The settings of this run; what cannot be read is a usage error that names where it was written."""
    from pytest_memleak.budget.expression import parse

    run = said(config, OPTIONS, config.option)
    defaults = {name: run.given[name] for name in DEFAULT_CHECKS if name in run.given}
    for name in defaults:
        run.value(name, partial(parse, zero=name == "max_leak"), None)

    def path(name: str) -> str | None:
        # As text: a slash at its end says that a folder is meant, and a Path would drop it.
        return run.value(name, partial(os.path.join, config.invocation_params.dir), None)

    return replace(
        _card(run),
        mode=run.value("mode", one_of(MODES), ENFORCE),
        explain=_explain(run),
        json=path("json"),
        html=path("html"),
        progress=run.value("progress", one_of(PROGRESS), AUTO),
        snapshots=path("snapshots"),
        ranks_timeout=run.value("ranks_timeout", choices.seconds, RANKS_TIMEOUT),
        share=run.value("share", choices.share, EQUAL),
        share_given=run.given.get("share"),
        card_timeout=run.value("card_timeout", choices.seconds, CARD_TIMEOUT),
        baseline=_baseline(config, run),
        defaults=defaults,
    )


def read_card(config: pytest.Config) -> Settings:
    """Of the settings what says which card there is: known before the first conftest is imported."""
    options = [option for option in OPTIONS if option.name in ("gpu_backend", "gpu_cap")]
    return _card(said(config, options, config.known_args_namespace))


def _card(run: Said) -> Settings:
    from pytest_memleak.budget.sizes import parse_size

    backend, cards = run.value("gpu_backend", choices.backend, ("auto", ""))
    return Settings(
        cap=run.value("gpu_cap", parse_size, None),
        cap_given=run.given.get("gpu_cap"),
        backend=backend,
        backend_given=run.given.get("gpu_backend"),
        cards=cards,
    )


def _explain(run: Said) -> str:
    explain = run.value("explain", one_of(EXPLAIN), AUTO)
    if "snapshots" in run.given and explain not in (ALWAYS, RERUN):
        raise pytest.UsageError(
            f"{run.given['snapshots'].source}: a snapshot shows what was recorded, and with "
            f"--memleak-explain={explain} nothing is, on CUDA: add --memleak-explain=always (for all tests) or rerun "
            "(for tests whose peak broke)"
        )
    return explain


def _baseline(config: pytest.Config, run: Said) -> Terms | None:
    if (file := run.given.get("baseline")) is None:
        if update := run.given.get("update"):
            raise pytest.UsageError(f"{update.source}: there is no baseline to update: say --memleak-baseline=PATH")
        return None
    if not file.text or file.text.endswith(("/", os.sep)):
        raise pytest.UsageError(
            f"{file.source}: {file.text!r} does not name a file: give the path of the baseline, as memleak-baseline.txt"
        )
    started = config.invocation_params.dir
    path = (file.folder or started) / Path(file.text).expanduser()
    return Terms(
        path=path,
        shown=str(path.relative_to(started)) if path.is_relative_to(started) else str(path),
        source=file.source,
        update=run.value("update", some_of(UPDATES), frozenset()),
        tolerance=run.value("baseline_tolerance", parse_tolerance, None),
    )
