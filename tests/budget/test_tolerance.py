from __future__ import annotations

import pytest

from pytest_memleak.budget.tolerance import DEFAULTS, parse_tolerance
from pytest_memleak.errors import BadInput
from pytest_memleak.settings import BACKENDS


@pytest.mark.parametrize(
    ("text", "above_10_000", "shown"),
    [
        ("0", 0, "0 B"),
        ("0%", 0, "0 B"),
        ("2%", 200, "2%"),
        ("2.5 %", 250, "2.5%"),
        ("1KiB", 1024, "1 KiB"),
        ("1KiB + 1%", 1124, "1% + 1 KiB"),
        ("1%+1KiB", 1124, "1% + 1 KiB"),
        ("100%", 10_000, "100%"),
    ],
)
def test_a_tolerance_is_a_share_and_a_size_added_up(text: str, above_10_000: int, shown: str) -> None:
    tolerance = parse_tolerance(text)
    assert tolerance.above(10_000) == above_10_000
    assert str(tolerance) == shown


def test_a_share_is_rounded_down() -> None:
    assert parse_tolerance("1%").above(199) == 1


@pytest.mark.parametrize(
    "text", ["", "%", "-1%", "1% of it", "nan%", "1MB 2%", "1% + 2%", "1K + 2K", "1%%", "9" * 5 + "%"]
)
def test_what_is_no_tolerance_is_quoted(text: str) -> None:
    with pytest.raises(BadInput, match="tolerance") as caught:
        parse_tolerance(text)
    assert repr(text) in str(caught.value)


def test_each_kind_of_card_has_a_default() -> None:
    assert set(DEFAULTS) == set(BACKENDS) - {"auto"}
    assert DEFAULTS["simulated"].above(1 << 40) == 0
    assert DEFAULTS["real"].above(1 << 30) > DEFAULTS["simulated"].above(1 << 30)
