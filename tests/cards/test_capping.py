"""The arithmetic of a cap; what a device makes of it is in tests/gpu."""

from __future__ import annotations

import pytest

from pytest_memleak.cards.capping import fraction_of

H200 = 150_115_516_416


@pytest.mark.parametrize("total", [H200, 25_769_803_776, 16_945_512_448, 1024**3, 8_589_934_592 - 3])
@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 9.3, 1000])
def test_fraction_gives_exactly_the_limit_once_torch_has_truncated(total: int, divisor: float) -> None:
    limit = int(total / divisor)
    fraction = fraction_of(limit, total)
    assert 0 < fraction <= 1
    assert int(fraction * total) == limit
