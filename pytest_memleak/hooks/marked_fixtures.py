"""Before pytest 9: a marker of this plugin on a fixture is an error of every test that uses the fixture.

pytest 9 refuses any marker on a fixture when it reads the module; before that it warns, and a limit would hold nothing.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Generator
from typing import Any

import pytest

from pytest_memleak.hooks.unjudged import Refused, insist
from pytest_memleak.marks import NAMES


class MarkedFixtures:
    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
        function = fixturedef.func
        name = next((mark.name for mark in _marks(function) if mark.name in NAMES), None)
        if name is not None:
            raise Refused(
                f"{_location(function, request.config)}: @pytest.mark.{name} stands on the fixture "
                f"{fixturedef.argname!r}, where it does nothing: put it on the tests that use the fixture",
                pytrace=False,
            )

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        insist(report, call)
        return report


def _marks(function: Callable[..., Any]) -> list[pytest.Mark]:
    """Those written below ``@pytest.fixture`` are on the function, those above on what its name is bound to."""
    if not inspect.isroutine(function):
        return []
    bound: Any = sys.modules.get(function.__module__)
    for part in function.__qualname__.split("."):
        bound = getattr(bound, part, None)
    lists = [getattr(place, "pytestmark", None) for place in (function, bound)]
    return [mark for found in lists if isinstance(found, list) for mark in found]


def _location(function: Callable[..., Any], config: pytest.Config) -> str:
    code = inspect.unwrap(function).__code__
    return f"{os.path.relpath(code.co_filename, config.rootpath)}:{code.co_firstlineno}"
