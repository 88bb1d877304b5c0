"""What became of upstream's tests, as a table with reasons."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

PACKAGES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "pytest")
COLUMNS = ("needs a hub", "needs values", "not simulated", "skipped", "other")
HEADS = ("library", "version", "GPU tests", "passed", "on two cards", "passed with a local model", *COLUMNS)


@dataclass(frozen=True)
class Result:
    """What became of one test, and why."""

    kind: str
    why: str = ""


@dataclass(frozen=True)
class Tests:
    """One library's tests for a GPU."""

    library: str
    version: str
    results: dict[str, Result]
    several: frozenset[str]
    """Those that ask for several cards, and had two."""
    with_models: dict[str, Result]
    """Those that ask a hub for a model, with one that was made here."""

    def row(self) -> str:
        counts = Counter(result.kind for result in self.results.values())
        on_two = sum(self.results[test].kind == "passed" for test in self.several)
        local = sum(result.kind == "passed" for result in self.with_models.values())
        cells = (self.library, self.version, len(self.results), counts["passed"], on_two, local)
        return _line((*cells, *(counts[column] - (local if column == "needs a hub" else 0) for column in COLUMNS)))

    def reasons(self) -> Iterator[str]:
        """Each reason for not passing, once, with how many tests it holds for."""
        for words, results in (("", self.results), (" with a local model", self.with_models)):
            kinds = Counter((result.kind, _plain(result.why)) for result in results.values())
            for (kind, why), count in kinds.most_common():
                if kind != "passed":
                    yield f"- {self.library}, {kind}{words}, {count}: `{why}`"

    def passed(self) -> Iterator[str]:
        for words, results in (("", self.results), (", with a local model", self.with_models)):
            for test, result in results.items():
                if result.kind == "passed":
                    yield f"- {self.library}{', on two cards' if test in self.several else ''}{words}: `{test}`"


def table(libraries: Sequence[Tests]) -> str:
    lines = ["Run with " + ", ".join(f"{package} {version(package)}" for package in PACKAGES) + ".", ""]
    lines += [_line(HEADS), "|" + "---|" * len(HEADS), *(tests.row() for tests in libraries)]
    lines += ["", "Why the others do not pass (numbers as N):", ""]
    lines += [reason for tests in libraries for reason in tests.reasons()]
    lines += ["", "The tests that pass:", ""]
    lines += [test for tests in libraries for test in tests.passed()]
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _plain(why: str) -> str:
    """Without what differs from test to test and from machine to machine."""
    why = re.sub(r"(/[\w.+-]+)+/", "…/", why.replace("`", "'").replace("|", "/"))
    return re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "N", why)[:150]
