"""torch's private names are in one file of this room: whoever follows a change of torch looks there."""

from __future__ import annotations

from pathlib import Path

import pytest

import pytest_memleak.values
from tests.cards.simulated.test_torch_inside import _private_names

ROOM = Path(pytest_memleak.values.__file__).parent
THE_ONE = "inside.py"


@pytest.mark.parametrize("file", sorted(path.name for path in ROOM.glob("*.py") if path.name != THE_ONE))
def test_no_other_file_touches_torch_s_private_api(file: str) -> None:
    assert list(_private_names(ROOM / file)) == []


def test_this_would_be_noticed() -> None:
    assert "torch._C" in set(_private_names(ROOM / THE_ONE))
