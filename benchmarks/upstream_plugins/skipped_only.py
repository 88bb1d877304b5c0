"""Keeps the tests that are skipped on this machine, perhaps for want of a GPU: other bodies would only take time."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = [item for item in items if _is_skipped(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _is_skipped(item: pytest.Item) -> bool:
    marked = (getattr(item, name, None) for name in ("obj", "cls"))
    return any(getattr(part, "__unittest_skip__", False) for part in marked) or any(item.iter_markers("skipif"))
