"""What is known of pytest's insides: what it keeps of a test, how a test is set up afresh. Checked on 8.3 and 9.2."""

from __future__ import annotations

import builtins
import contextlib
import copy
import gc
import logging
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import pytest
from _pytest.logging import LogCaptureHandler, caplog_handler_key, caplog_records_key
from _pytest.tmpdir import tmppath_result_key

from pytest_memleak.errors import Unavailable

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def let_go_of_what_pytest_keeps(item: Any) -> None:
    """pytest holds the torn-down fixtures' values, and what was logged, until its reports are done."""
    arguments: dict[str, Any] = getattr(item, "funcargs", None) or {}
    definitions = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    for name in list(arguments):
        if name in definitions and definitions[name][-1].scope == "function":
            del arguments[name]
    if isinstance(item, pytest.DoctestItem):
        _let_go_of_what_was_displayed()
    # Copies: the program's own handlers may keep a record, and what that holds is a leak.
    capturing = [one.records for one in logging.getLogger().handlers if isinstance(one, LogCaptureHandler)]
    for records in (*item.stash.get(caplog_records_key, {}).values(), *capturing):
        records[:] = map(_only_words, records)


def _let_go_of_what_was_displayed() -> None:
    """Python keeps the last value that an example displayed as `_`, where gettext has a function of its own."""
    if not isinstance(getattr(builtins, "_", None), FunctionType | MethodType):
        vars(builtins).pop("_", None)


def _only_words(record: logging.LogRecord) -> logging.LogRecord:
    """The record as text: its arguments, its traceback's frames and its extras may all hold tensors."""
    words = copy.copy(record)
    words.msg, words.args = record.getMessage(), None
    if record.exc_info:
        words.exc_text = record.exc_text or logging.Formatter().formatException(record.exc_info)
        words.exc_info = None
    for name in vars(words).keys() - _STANDARD:
        setattr(words, name, repr(vars(words)[name]))
    return words


def let_go_of_failures(item: Any) -> None:
    """pytest-rerunfailures keeps what a test raised, with its frames, also where nothing is to be run again."""
    getattr(item, "_rerun_condition_excinfos", {}).clear()


@contextlib.contextmanager
def keeping_no_instance(plugin: Any) -> Iterator[None]:
    """flaky holds a test's instance, and what is on it, until the test is reported. Its class tells it as much.

    Checked on flaky 3.8, which asks for it before the test is set up. Any other plugin stays as it is.
    """
    runner: Any = getattr(plugin, "PLUGIN", None)
    ask = getattr(runner, "_get_test_instance", None)
    if ask is None:
        yield
        return
    runner._get_test_instance = lambda item: getattr(item, "cls", None) or ask(item)
    try:
        yield
    finally:
        del runner._get_test_instance


def tear_down(item: Any) -> None:
    """Tears down a test and its function fixtures, and nothing wider."""
    # A tmp_path asks how the phases went, and forgets it when it is torn down.
    item.stash.setdefault(tmppath_result_key, {})
    # Of the next item it is asked for nothing but its chain of collectors.
    item.session._setupstate.teardown_exact(item.parent)


def set_up_afresh(item: Any) -> None:
    """As for a new test: with a request, fixtures, an instance and log records of its own."""
    if not hasattr(item, "_initrequest"):
        raise Unavailable(f"repeat= needs a test function, and {item.name!r} is a {type(item).__name__}")
    if getattr(item, "_instance", None) is not None:
        del item._instance
        item._obj = None
    item._initrequest()
    if (handler := item.stash.get(caplog_handler_key, None)) is not None:
        handler.reset()
        item.stash[caplog_records_key]["call"] = handler.records
    item.session._setupstate.setup(item)


def named_holders(item: Any, wider: Iterable[pytest.FixtureDef[Any]]) -> dict[str, object]:
    """Who could hold a leak and has a name that only pytest knows. `wider`: fixtures that are there, for any test."""
    named: dict[str, object] = {}
    if (instance := getattr(item, "_instance", None)) is not None:
        named[f"self of {type(instance).__name__}"] = instance
    for name, value in (getattr(item, "funcargs", None) or {}).items():
        named[f"fixture {name!r}"] = value
    for definition in wider:
        value = (definition.cached_result or (None,))[0]
        if gc.is_tracked(value) and not isinstance(value, (type, ModuleType)):
            named.setdefault(f"fixture {definition.argname!r}", value)
    return named


def recorded_failure(item: pytest.Item) -> BaseException | None:
    """What a `unittest.TestCase` test raised: pytest keeps it on the item instead of letting it through."""
    recorded = getattr(item, "_excinfo", None)
    return recorded[0].value if recorded else None


def own_id(item: pytest.Item) -> str:
    """Its node id, whatever another plugin has added to that."""
    return f"{item.parent.nodeid}::{item.name}" if item.parent is not None else item.nodeid


def fixtures_in_use(item: Any) -> list[pytest.FixtureDef[Any]]:
    """Those that the test has asked for so far, and those that these have named as their arguments."""
    return list(getattr(getattr(item, "_request", None), "_fixture_defs", {}).values())


@contextlib.contextmanager
def noting_fixtures_asked(request: Any) -> Iterator[list[pytest.FixtureDef[Any]]]:
    """While a fixture is set up: those that its function asks for (`getfixturevalue`), set up before or not."""
    found: list[pytest.FixtureDef[Any]] = []
    real = request._get_active_fixturedef

    def noting(name: str) -> Any:
        definition = real(name)
        if isinstance(definition, pytest.FixtureDef):  # `request` has something else before pytest 9
            found.append(definition)
        return definition

    request._get_active_fixturedef = noting
    try:
        yield found
    finally:
        del request._get_active_fixturedef


def fixtures_named(item: Any) -> list[pytest.FixtureDef[Any]]:
    """The same as far as it can be told before they are set up."""
    definitions = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    return [found[-1] for found in definitions.values() if found]
