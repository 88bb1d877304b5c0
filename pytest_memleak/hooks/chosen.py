"""The models that a test or a fixture has named, for whoever looks at what they hold."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import pytest
from torch import nn

from pytest_memleak.upstream import watched

if TYPE_CHECKING:
    from pytest_memleak.upstream.loads import ModelObserver

_FIXTURE = "fixture:"

References = list[weakref.ref[Any]]


def named_models(item: pytest.Item, model: object) -> References | str | None:
    """The one of the marker's `model=`, else those that are watched; None if nobody names any, or why it can't be."""
    if model is None:
        return list({id(ref): ref for ref in watched.watched_modules()}.values()) or None
    if isinstance(model, nn.Module):
        return [weakref.ref(model)]
    name = str(model).removeprefix(_FIXTURE)
    value = getattr(item, "funcargs", {}).get(name)
    if isinstance(value, nn.Module):
        return [weakref.ref(value)]
    return f"model={model!r}: the test uses no fixture {name!r} whose value is a module"


def made_before(item: pytest.Item, model: object, observer: ModelObserver | None) -> str:
    """Where the named models were made, if not in the test's own time; empty if they were, or nobody knows."""
    if isinstance(model, str):
        name = model.removeprefix(_FIXTURE)
        definitions = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {}).get(name, ())
        scope = definitions[-1].scope if definitions else "function"
        where = f"fixture {name!r} of scope {scope!r}" if scope != "function" else ""
        older = named_models(item, model) if where else None
    else:
        where = "a wider fixture, or outside of any test, and watched there"
        older = watched.watched_modules(wider=True) if model is None else None
    if not isinstance(older, list):
        return ""
    there = [module for ref in older if (module := ref()) is not None]
    # One that a wider fixture only keeps may have been built by the test.
    return where if any(observer is None or not observer.has_seen(module) for module in there) else ""
