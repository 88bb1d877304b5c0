from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from pytest_memleak.budget.expression import parse
from pytest_memleak.budget.names import NAMES
from pytest_memleak.budget.term import Term
from pytest_memleak.errors import BadInput, Inconclusive

GIB = 1024**3
KNOWN = {"fp16_size": 1001, "final_size": 700, "largest_param": 10, "fp32_size": 2002}


def term(name: str) -> Term:
    return Term(name, KNOWN[name], f"{name} of a model")


def value(text: str | int, *, zero: bool = False) -> int:
    return parse(text, zero=zero).evaluate(term)[0]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("fp16_size", 1001),
        ("0.6 * fp16_size + 200MiB", 600 + 200 * 1024**2),
        ("final_size + 2 * largest_param", 720),
        ("2*largest_param+final_size", 720),
        ("1G + 2 * 3G", 7 * GIB),
        ("(1G + 2G) * 3", 9 * GIB),
        ("10G - 2G - 3G", 5 * GIB),
        ("10G - (2G - 3G)", 11 * GIB),
        ("8G / 2 / 2", 2 * GIB),
        ("8G / 2 * 2", 8 * GIB),
        ("min(fp16_size, 1K, 2G)", 1001),
        ("max(fp16_size, 1K)", 1024),
        ("2 * max(1K, min(fp16_size, 2K)) + 1B", 2049),
        ("fp16_size / final_size * 700B", 1001),
        ("fp16_size / 3", 333),
        ("max(1, 2) * 1K", 2048),
        ("((1K))", 1024),
        ("512", 512),
        (512, 512),
        (" 512 ", 512),
        ("0.1 * 3 * 10B", 3),
        ("fp16_size - 1000B", 1),
        ("200 MiB", 200 * 1024**2),
    ],
)
def test_arithmetic(text: str | int, size: int) -> None:
    assert value(text) == size


def test_fractions_are_exact_and_only_the_result_is_rounded_down() -> None:
    # 0.29 * 100 is 28.999… in floating point.
    assert value("0.29 * 100B") == 29
    assert value("fp16_size / 3 * 3") == 1001
    assert value("0.999 * fp16_size") == 999


@pytest.mark.parametrize(
    ("text", "problem", "column"),
    [
        ("fp16_size * fp16_size", "size times a size", 10),
        ("fp16_size + 200", "write it with a unit, as in 200B or 200MiB", 12),
        ("200 + fp16_size", "write it with a unit, as in 200B or 200MiB", 0),
        ("1G - 1", "write it with a unit", 5),
        ("1 / fp16_size * 1G", "number divided by a size", 2),
        ("min(fp16_size, 200)", "write the number with a unit", 15),
        ("max(1, 1G)", "write the number with a unit", 4),
        ("fp16_size / final_size", "plain number and not to bytes", 0),
        ("0.6", "plain number and not to bytes", 0),
        ("2 + 3", "plain number and not to bytes", 0),
        ("(512)", "plain number and not to bytes", 0),
        ("fp16_sise * 2", "did you mean 'fp16_size'", 0),
        ("2 * frobnicate", "unknown name 'frobnicate'. Known are: fp32_size, fp16_size", 4),
        ("2 largest_param", "write 2 * largest_param", 2),
        ("2largest_param", "write 2 * largest_param", 1),
        ("largest_param 2", "'2' cannot stand here", 14),
        ("fp16_size largest_param", "'largest_param' cannot stand here", 10),
        ("16 gigs", "unknown unit 'gigs'", 3),
        ("24 MB per test", "'per' cannot stand here", 6),
        ("1e9", "unknown unit 'e9'", 1),
        ("1.5B * 2", "not a whole number of bytes", 0),
        ("(1G", "never closed", 0),
        ("min(1G, 2G", "never closed", 3),
        ("1G)", "')' cannot stand here", 2),
        ("()", "')' cannot stand here", 1),
        ("min()", "')' cannot stand here", 4),
        ("min(1G)", "at least two", 0),
        ("(1G, 2G)", "',' cannot stand here", 3),
        ("max", "write max(", 0),
        ("min * 2", "write min(", 0),
        ("1G +", "ends too early", 4),
        ("1G * * 2", "'*' cannot stand here", 5),
        ("-1G", "no negative parts", 0),
        ("1G * -1", "no negative parts", 5),
        ("1G ** 2", "'*' cannot stand here", 4),
        ("1G / 0", "division by zero", 3),
        ("1G / (2 - 2)", "division by zero", 3),
        ("1G $ 2", "'$' cannot stand here", 3),
        ("__import__('os')", "unknown name '__import__'", 0),
        ("fp16_size.real", "'.' cannot stand here", 9),
        ("\t2 * oops", "unknown name 'oops'", 5),
        ("nan", "unknown name 'nan'", 0),
        ("", "it is empty", 0),
        ("  ", "it is empty", 0),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_caret_below_it(text: str, problem: str, column: int) -> None:
    with pytest.raises(BadInput) as caught:
        parse(text)
    first, line, caret = str(caught.value).split("\n")
    assert first.startswith(f"{text!r} is not a limit: ")
    assert problem in first
    assert line == "    " + text.replace("\t", " ")
    assert caret == "    " + " " * column + "^"


@pytest.mark.parametrize("text", ["0", "0G", 0, "1G - 1G", "1G - 2G", "0 * 1G", "0.1 * 1B"])
def test_a_limit_that_comes_to_nothing_is_refused_when_it_is_read(text: str | int) -> None:
    with pytest.raises(BadInput, match="more than zero bytes"):
        parse(text)


@pytest.mark.parametrize("bad", [True, None, 1.5, ["1G"]])
def test_what_is_neither_text_nor_bytes_is_refused(bad: Any) -> None:
    with pytest.raises(BadInput, match="is not a limit"):
        parse(bad)


def test_with_names_the_sign_is_known_at_evaluation() -> None:
    expression = parse("fp16_size - 1G")
    with pytest.raises(BadInput, match="'fp16_size - 1G' comes to less than zero"):
        expression.evaluate(term)
    with pytest.raises(BadInput, match="division by zero"):
        parse("1G / (fp16_size - fp16_size) * 1G").evaluate(term)


def test_zero_where_it_is_allowed_but_never_less() -> None:
    assert value("0", zero=True) == 0
    assert value("fp16_size - 1001B", zero=True) == 0
    with pytest.raises(BadInput, match="zero or more"):
        value("fp16_size - 1002B", zero=True)


def test_the_terms_come_once_and_in_the_order_of_the_text() -> None:
    expression = parse("largest_param + fp16_size + 2 * largest_param")
    assert expression.text == "largest_param + fp16_size + 2 * largest_param"
    assert expression.names == {"largest_param", "fp16_size"}
    size, terms = expression.evaluate(term)
    assert size == 1031
    assert terms == (term("largest_param"), term("fp16_size"))


def test_a_name_the_model_does_not_know_stays_inconclusive() -> None:
    def unknown(name: str) -> Term:
        raise Inconclusive(f"{name} is not known")

    with pytest.raises(Inconclusive, match="final_size is not known"):
        parse("2 * final_size").evaluate(unknown)


@pytest.mark.parametrize("text", ["(" * 40 + "1K" + ")" * 40, " + ".join(["1B"] * 199)])
def test_deep_and_long_limits_are_read(text: str) -> None:
    assert value(text) in (1024, 199)


@pytest.mark.parametrize("text", ["(" * 400 + "1K" + ")" * 400, "1" * 5000, "1K" + " + 1K" * 5000])
def test_absurd_limits_are_refused_and_not_a_crash(text: str) -> None:
    with pytest.raises(BadInput):
        parse(text)


def test_every_name_of_the_table_can_be_written() -> None:
    for name in NAMES:
        assert parse(f"2 * {name}").names == {name}


def test_neither_torch_nor_numpy_is_needed_to_read_a_limit() -> None:
    code = "import sys, pytest_memleak.budget.expression; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
