"""What is known of pytest's insides: what it keeps of a test, how a test is set up afresh. Checked on 8.3 and 9.2."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Iterable
from types import ModuleType
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
    # Copies: the program's own handlers may keep a record, and what that holds is a leak.
    capturing = [one.records for one in logging.getLogger().handlers if isinstance(one, LogCaptureHandler)]
    for records in (*item.stash.get(caplog_records_key, {}).values(), *capturing):
        records[:] = map(_only_words, records)


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
