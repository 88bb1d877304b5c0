"""torch's private names are in one file of this room: whoever follows a change of torch looks there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_memleak.cards import simulated

ROOM = Path(simulated.__file__ or "").parent
THE_ONE = "torch_inside.py"


@pytest.mark.parametrize("file", sorted(file.name for file in ROOM.glob("*.py") if file.name != THE_ONE))
def test_no_other_file_touches_torch_s_private_api(file: str) -> None:
    assert list(_private_names(ROOM / file)) == []


def test_the_one_that_does_is_found_out() -> None:
    assert "torch._C" in set(_private_names(ROOM / THE_ONE))


def _private_names(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        yield from (name for name in names if _is_private(name))


def _is_private(name: str) -> bool:
    root, *parts = name.split(".")
    return root == "torch" and any(part.startswith("_") and not part.startswith("__") for part in parts)
