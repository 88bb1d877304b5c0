"""Ctrl-C and time-outs, while tests run that native code calls us back from: they are not lost in a callback."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from pytest_memleak.events import callbacks

_NAME = "memleak-interrupts"


def wait_for_callbacks(config: pytest.Config) -> None:
    """From now on in every test of the run. May be called again."""
    if not config.pluginmanager.hasplugin(_NAME):
        config.pluginmanager.register(_EachPhase(), _NAME)


class _EachPhase:
    """Innermost: plugins that limit a test's time set their handlers in wrappers around."""

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_setup(self) -> Generator[None, object, object]:
        with callbacks.whole():
            return (yield)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        with callbacks.whole():
            return (yield)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_teardown(self) -> Generator[None, object, object]:
        with callbacks.whole():
            return (yield)
