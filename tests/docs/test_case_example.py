"""The case that docs/matrix.md shows is the one that is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest_memleak

CASE = Path(pytest_memleak.__file__).parent / "cases" / "four_bit_load.toml"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "matrix.md"


def test_the_case_that_is_shown_is_the_one_that_is_shipped() -> None:
    assert f"```toml\n# pytest_memleak/cases/{CASE.name}\n{CASE.read_text()}```\n" in PAGE.read_text()
