"""What was said of each option, and where: by a flag, else in the environment, else in an ini file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pytest_memleak.errors import BadInput
from pytest_memleak.settings.options import Option

T = TypeVar("T")
Default = TypeVar("Default")


@dataclass(frozen=True)
class Given:
    """A value as it was typed, and where."""

    text: str
    source: str
    folder: Path | None = None
    """What a path in it is relative to; None: to where pytest was started."""


@dataclass(frozen=True)
class Said:
    """All that was given, by the names of the options."""

    given: Mapping[str, Given]

    def value(self, name: str, read: Callable[[str], T], default: Default) -> T | Default:
        """A text that cannot be read is a usage error that names where it was written."""
        if (given := self.given.get(name)) is None:
            return default
        try:
            return read(given.text)
        except BadInput as error:
            raise pytest.UsageError(f"{given.source}: {error}") from None


def said(config: pytest.Config, options: Iterable[Option], flags: Any) -> Said:
    """`flags`: the command line as argparse has read it."""
    found = ((option.name, _given(config, option, flags)) for option in options)
    return Said({name: given for name, given in found if given is not None})


def _given(config: pytest.Config, option: Option, flags: Any) -> Given | None:
    if (flag := getattr(flags, option.dest, None)) is not None:
        return Given(flag, f"{option.flag} on the command line")
    if environment := os.environ.get(option.environment):
        return Given(environment, f"the environment variable {option.environment}")
    if ini := config.getini(option.ini):
        place = f" in {config.inipath.name}" if config.inipath else ""
        return Given(str(ini), f"{option.ini}{place}", config.inipath and config.inipath.parent)
    return None
