from __future__ import annotations

from typing import Any

import pytest

from pytest_memleak.budget.sizes import format_exact, format_size, parse_size
from pytest_memleak.errors import BadInput


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("512B", 512),
        (512, 512),
        ("16G", 16 * 1024**3),
        ("16GiB", 16 * 1024**3),
        ("16 GiB", 16 * 1024**3),
        ("16GB", 16 * 1000**3),
        ("16g", 16 * 1024**3),
        ("1K", 1024),
        ("1k", 1024),
        ("1KiB", 1024),
        ("1KB", 1000),
        ("1kB", 1000),
        ("3M", 3 * 1024**2),
        ("3MB", 3 * 1000**2),
        ("2T", 2 * 1024**4),
        ("2TB", 2 * 1000**4),
        ("1.5G", 3 * 1024**3 // 2),
        ("0.1K", 102),
        (" 7M ", 7 * 1024**2),
    ],
)
def test_units_are_taken_at_their_word(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "16 gigs",
        "24 MB per test",
        "-1G",
        "0",
        "0G",
        0,
        -5,
        "nan",
        "inf",
        True,
        False,
        "",
        " ",
        "G",
        "16gb",
        "16Gib",
        "1e9",
        "1_000",
        "0x10",
        "1.5",
        "1.5B",
        ".5G",
        "5.G",
        "0.0001K",
        "１G",
        2.5,
        None,
        b"16G",
    ],
)
def test_what_is_no_size_is_refused_and_quoted(text: Any) -> None:
    with pytest.raises(BadInput) as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


def test_an_error_lists_what_is_allowed() -> None:
    with pytest.raises(BadInput, match=r"16G or 16GiB \(1024³\), 16GB \(1000³\)"):
        parse_size("16 gigs")


def test_a_wrong_case_is_answered_with_the_right_one() -> None:
    with pytest.raises(BadInput, match="did you mean GB"):
        parse_size("16gb")


def test_thousands_of_digits_are_refused_and_not_printed() -> None:
    with pytest.raises(BadInput) as caught:
        parse_size("9" * 10_000)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["0", "0B", "0 GiB", 0])
def test_zero_is_a_size_where_it_may_be(text: str | int) -> None:
    assert parse_size(text, zero=True) == 0


def test_less_than_zero_is_never_a_size() -> None:
    with pytest.raises(BadInput, match="less than zero"):
        parse_size(-1, zero=True)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1025, "1.001 KiB"),
        (200 * 1024**2, "200 MiB"),
        (1024**2 - 1, "1.000 MiB"),
        (1023 * 1024 + 1, "1023 KiB"),
        (2_148_532_224, "2.001 GiB"),
        (16 * 1024**3, "16 GiB"),
        (16 * 1024**3 + 1, "16.00 GiB"),
        (10 * 1024**3 - 1, "10.00 GiB"),
        (5000 * 1024**4, "5000 TiB"),
        (-3_355_443, "-3.200 MiB"),
        (-1, "-1 B"),
    ],
)
def test_sizes_are_printed_with_four_digits(size: int, text: str) -> None:
    assert format_size(size) == text


def test_where_the_last_byte_matters_it_is_printed() -> None:
    assert format_exact(2_148_532_224) == "2.001 GiB (2,148,532,224 B)"
    assert format_exact(-2048) == "-2 KiB (-2,048 B)"
    assert format_exact(512) == "512 B"


@pytest.mark.parametrize("power", range(60))
def test_what_is_printed_round_reads_back_as_the_same_size(power: int) -> None:
    assert parse_size(format_size(2**power)) == 2**power
