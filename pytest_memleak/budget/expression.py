"""Limits as arithmetic over sizes and the names of `names.py`: read once, worked out when the model is known.

The numbers are fractions, so that ``0.6 * fp16_size`` is exact and only the result is rounded, down. Every part is
either a plain number or a size; what mixes them up is refused when the limit is read, before any test runs.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NoReturn

from pytest_memleak.budget.names import NAMES
from pytest_memleak.budget.sizes import ALLOWED, LONGEST_TEXT, UNITS, amount, check_sign, shown
from pytest_memleak.budget.term import Term
from pytest_memleak.errors import BadInput, MemleakError

Values = Mapping[str, Fraction]

_DEEPEST = 50  # parentheses in parentheses; far below what Python's own stack stands
_FUNCTIONS: dict[str, Callable[[list[Fraction]], Fraction]] = {"min": min, "max": max}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[0-9]+(?:\.[0-9]+)?)(?:\s*(?P<unit>[A-Za-z][A-Za-z0-9_]*))?"
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>[-+*/(),])|(?P<end>$)|(?P<other>.))",
    re.ASCII,
)


@dataclass(frozen=True)
class Expression:
    """A limit that was read and makes sense; what its names stand for is not yet known."""

    text: str
    names: frozenset[str]
    zero: bool
    _root: _Part = field(repr=False, compare=False)
    _order: tuple[str, ...] = field(repr=False)

    def evaluate(self, term_of: Callable[[str], Term]) -> tuple[int, tuple[Term, ...]]:
        """The limit in bytes, rounded down, and what each name meant, in the order of the text."""
        terms = tuple(term_of(name) for name in self._order)
        value = self._root.value({name: Fraction(term.bytes) for name, term in zip(self._order, terms, strict=True)})
        return check_sign(math.floor(value), self.text, zero=self.zero), terms


@dataclass(frozen=True)
class _Part:
    is_size: bool
    at: int
    """Where it stands in the text, for the errors."""
    value: Callable[[Values], Fraction]


def parse(text: str | int, *, zero: bool = False) -> Expression:
    """Reads a limit such as ``"0.6 * fp16_size + 200MiB"``; `zero` allows it to come to nothing."""
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise BadInput(f"{text!r} is not a limit: write '0.6 * fp16_size + 200MiB' and the like, or bytes as an int")
    if isinstance(text, str) and len(text) > LONGEST_TEXT:
        raise BadInput(f"{shown(text)} is too long for a limit: at most {LONGEST_TEXT} characters")
    if isinstance(text, int):
        check_sign(text, text, zero=zero)
    return _Parser(str(text)).expression(zero)


class _Parser:
    """Recursive descent: sum → product → atom. Each step checks what may be combined."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: dict[str, None] = {}
        self.depth = 0
        self.next = 0
        self.advance()

    def advance(self) -> None:
        match = _TOKEN.match(self.text, self.next)
        assert match is not None  # one branch takes any character, one the end
        self.kind = "number" if match["number"] else str(match.lastgroup)
        self.token, self.unit = match[self.kind], match["unit"] or ""
        self.start, self.next = match.start(self.kind), match.end()
        if self.unit and self.unit not in UNITS:
            if self.unit in NAMES or self.unit in _FUNCTIONS:
                self.refuse(f"an operator is missing: write {self.token} * {self.unit}", match.start("unit"))
            self.refuse(f"unknown unit {self.unit!r} after {self.token}; {ALLOWED}", match.start("unit"))

    def refuse(self, problem: str, at: int) -> NoReturn:
        # Any space counts as one column, so that a tab cannot push the caret away from what it points at.
        line = re.sub(r"\s", " ", self.text)
        raise BadInput(f"{self.text!r} is not a limit: {problem}\n    {line}\n    {' ' * at}^")

    def expression(self, zero: bool) -> Expression:
        if self.kind == "end":
            self.refuse("it is empty; write a size such as 200MiB, or names: " + ", ".join(NAMES), 0)
        bare = self.kind == "number" and not self.unit
        root = self.sum()
        if self.kind != "end":
            self.refuse(f"{self.token!r} cannot stand here; an operator (+ - * /) is missing or too much", self.start)
        if not root.is_size and not (bare and re.fullmatch(r"\s*[0-9]+\s*", self.text)):
            self.refuse("it comes to a plain number and not to bytes; name a size, as in 0.6 * fp16_size or 200MiB", 0)
        order = tuple(self.names)
        expression = Expression(self.text, frozenset(order), zero, root, order)
        if not order:
            expression.evaluate(_no_term)  # nothing is left to learn: what is wrong with it is wrong already
        return expression

    def sum(self) -> _Part:
        left = self.product()
        while self.kind == "sign" and self.token in "+-":
            sign, at = self.token, self.start
            self.advance()
            right = self.product()
            if left.is_size != right.is_size:
                bare = right if left.is_size else left
                self.refuse(
                    f"a size {sign} a plain number: a number of what? write it with a unit, as in 200B or 200MiB",
                    bare.at,
                )
            left = _Part(left.is_size, at, _combined(left, sign, right))
        return left

    def product(self) -> _Part:
        left = self.atom()
        while self.kind == "sign" and self.token in "*/":
            sign, at = self.token, self.start
            self.advance()
            right = self.atom()
            if sign == "*" and left.is_size and right.is_size:
                self.refuse("a size times a size is no size; one of the two has to be a plain number", at)
            if sign == "/" and right.is_size and not left.is_size:
                self.refuse("a number divided by a size is no size", at)
            is_size = left.is_size != right.is_size
            value = self._quotient(left, right, at) if sign == "/" else _combined(left, sign, right)
            left = _Part(is_size, at, value)
        return left

    def atom(self) -> _Part:
        kind, token, at, unit = self.kind, self.token, self.start, self.unit
        if kind == "number":
            number = self._amount(token, unit, at) if unit else Fraction(token)
            self.advance()
            return _Part(bool(unit), at, lambda values: number)
        if kind == "word":
            self.advance()
            return self.call(token, at) if token in _FUNCTIONS else self.name(token, at)
        if kind == "sign" and token == "(":
            self.advance()
            part = self.inside(at)[0]
            return _Part(part.is_size, at, part.value)
        problem = f"{token!r} cannot stand here; a size, a number, a name or a parenthesis can"
        if token == "-":
            problem = "a limit has no negative parts"
        return self.refuse("it ends too early; a size, a number or a name is missing" if kind == "end" else problem, at)

    def _amount(self, number: str, unit: str, at: int) -> Fraction:
        try:
            return amount(number, unit, f"{number}{unit}")
        except BadInput as error:
            self.refuse(str(error), at)

    def inside(self, at: int, *, many: bool = False) -> list[_Part]:
        """What stands in a parenthesis that was just opened at `at`."""
        self.depth += 1
        if self.depth > _DEEPEST:
            self.refuse(f"more than {_DEEPEST} parentheses in each other", at)
        parts = [self.sum()]
        while many and self.token == ",":
            self.advance()
            parts.append(self.sum())
        if self.token != ")":
            if self.kind == "end":
                self.refuse("a parenthesis is opened here and never closed", at)
            self.refuse(f"{self.token!r} cannot stand here; ')' can", self.start)
        self.advance()
        self.depth -= 1
        return parts

    def call(self, function: str, at: int) -> _Part:
        if self.token != "(":
            self.refuse(f"{function} is a function: write {function}(…, …)", at)
        opened = self.start
        self.advance()
        parts = self.inside(opened, many=True)
        if len(parts) < 2:
            self.refuse(f"{function}() compares at least two values", at)
        odd = next((part for part in parts if part.is_size != parts[0].is_size), None)
        if odd is not None:
            bare = parts[0] if odd.is_size else odd
            self.refuse(f"{function}() of a size and a plain number: write the number with a unit, as in 200B", bare.at)
        return _Part(parts[0].is_size, at, lambda values: _FUNCTIONS[function]([part.value(values) for part in parts]))

    def name(self, name: str, at: int) -> _Part:
        if name not in NAMES:
            close = difflib.get_close_matches(name, [*NAMES, *_FUNCTIONS], n=1)
            hint = f", did you mean {close[0]!r}?" if close else "."
            self.refuse(f"unknown name {name!r}{hint} Known are: {', '.join(NAMES)}", at)
        self.names.setdefault(name)
        return _Part(True, at, lambda values: values[name])

    def _quotient(self, left: _Part, right: _Part, at: int) -> Callable[[Values], Fraction]:
        def quotient(values: Values) -> Fraction:
            divisor = right.value(values)
            if not divisor:
                self.refuse("a division by zero", at)
            return left.value(values) / divisor

        return quotient


def _combined(left: _Part, sign: str, right: _Part) -> Callable[[Values], Fraction]:
    if sign == "+":
        return lambda values: left.value(values) + right.value(values)
    if sign == "-":
        return lambda values: left.value(values) - right.value(values)
    return lambda values: left.value(values) * right.value(values)


def _no_term(name: str) -> Term:
    raise MemleakError(f"a limit without names asked for {name}")
