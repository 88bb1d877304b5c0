"""What is run: releases that are crossed, and those of cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from packaging.version import Version

from pytest_memleak.errors import BadInput, Unavailable
from pytest_memleak.releases.case import Case
from pytest_memleak.releases.cell import Run, Versions
from pytest_memleak.releases.index import Release
from pytest_memleak.releases.planning import Base, Varied, as_here, crossed, of_cases, varied


def index(package: str) -> list[Release]:
    return [Release(Version(one)) for one in ("1.0", "1.1.0", "1.1.1", "1.2.0", "1.2.1", "2.0rc1")]


def case(good: tuple[str, ...], bad: tuple[str, ...]) -> Case:
    return Case("c", Path("/cases/c.toml"), "T", "lib", good, bad, "c.py::t", requirements=("dep==3",), pytest=("-q",))


def test_what_is_varied() -> None:
    assert varied("Some_Lib == 1.0, 1.1 ,1.0") == Varied("some-lib", ("1.0", "1.1"))
    assert varied("lib>=1,<2") == Varied("lib", specifier=">=1,<2")
    assert varied("lib==1.1.*") == Varied("lib", specifier="==1.1.*")
    with pytest.raises(BadInput, match="is no specifier"):
        varied("lib>>1")


def test_releases_are_crossed() -> None:
    runs = crossed({"a": ["1", "2"], "b": ["3"]}, ["test_it.py::test_x", "-q"], Base(("c>2",), "3.12", 60))
    assert [run.environment.versions for run in runs] == [(("a", "1"), ("b", "3")), (("a", "2"), ("b", "3"))]
    assert runs[0].names == ("test_it.py::test_x",)
    assert runs[0].environment.all_requirements()[:3] == ["a==1", "b==3", "c>2"]


def test_torch_and_pytest_are_those_that_are_here_unless_named() -> None:
    torch, pytest_ = (f"{name}=={metadata.version(name)}" for name in ("torch", "pytest"))
    assert as_here(set()) == [pytest_, torch]
    assert Base(("Torch>=2.6",)).environment({"pytest": "8.3.0"}).requirements == ("Torch>=2.6",)


def test_a_case_is_run_from_the_oldest_release_to_the_newest() -> None:
    runs = of_cases([case(("1.2.0", ">=1.1,<2"), ("1.0",))], index, Base())
    # Of 1.1 the last patch; 1.2.1 is the last one of 1.2, which 1.2.0 does not stand for.
    assert [(run.environment.versions[0][1], run.good) for run in runs] == [
        ("1.0", False),
        ("1.1.1", True),
        ("1.2.0", True),
        ("1.2.1", True),
    ]
    assert runs[0].arguments == ("-q", "/cases/c.py::t")
    assert runs[0].environment.requirements[0] == "dep==3"


def test_a_time_limit_that_is_told_wins_over_that_of_a_case() -> None:
    silent = case(("1.0",), ())
    own = replace(silent, timeout=60)
    untold, told = Base(), Base(timeout=7)
    assert [of_cases([one], index, untold)[0].timeout for one in (silent, own)] == [1800, 60]
    assert [of_cases([one], index, told)[0].timeout for one in (silent, own)] == [7, 7]
    assert [crossed({"a": ["1"]}, ["t.py"], base)[0].timeout for base in (untold, told)] == [1800, 7]


def test_a_quick_run_asks_no_index() -> None:
    def no_index(package: str) -> list[Release]:
        raise AssertionError(package)

    runs = of_cases([case(("1.2.0", ">=1.1,<2"), ("1.0", "1.1.0"))], no_index, Base(), quick=True)
    assert [run.environment.versions[0][1] for run in runs] == ["1.0", "1.2.0"]


def tried(runs: Sequence[Run]) -> list[tuple[Versions, bool]]:
    return [(run.environment.versions, run.good) for run in runs]


def test_a_case_is_crossed_with_releases_of_what_it_needs() -> None:
    runs = of_cases([case(("1.2.0",), ("1.0",))], index, Base(), releases={"dep": ["3", "10"]})
    assert tried(runs) == [
        ((("lib", "1.0"), ("dep", "3")), False),
        ((("lib", "1.0"), ("dep", "10")), False),
        ((("lib", "1.2.0"), ("dep", "3")), True),
        ((("lib", "1.2.0"), ("dep", "10")), True),
    ]
    assert not [one for one in runs[0].environment.requirements if one.startswith("dep")], "varied, and not ==3 as well"


def test_releases_in_place_of_those_of_a_case() -> None:
    runs = of_cases([case(("1.2.0",), ("<1.2",))], index, Base(), releases={"lib": ["1.2.0", "1.1.0"]})
    assert tried(runs) == [((("lib", "1.1.0"),), False), ((("lib", "1.2.0"),), True)]
    assert runs[0].environment.requirements[0] == "dep==3"


def test_cases_about_two_packages_share_the_environments_in_which_these_are_crossed() -> None:
    one = case(("1.2.0",), ())
    other = replace(one, package="Dep", good=(), bad=("3",), requirements=("lib==1.0",))
    runs = of_cases([one, other], index, Base(), releases={"dep": ["3"], "lib": ["1.2.0"]})
    assert [run.good for run in runs] == [True, False]
    assert runs[0].environment == runs[1].environment
    assert runs[0].environment.versions == (("dep", "3"), ("lib", "1.2.0"))


def test_releases_that_are_not_known_are_a_cell_that_says_so() -> None:
    def gone(package: str) -> list[Release]:
        raise Unavailable("the index is gone")

    runs = of_cases([case(("1.2.0", ">=1.1"), ())], gone, Base())
    assert [(run.environment.versions[0][1], run.cannot) for run in runs] == [
        ("1.2.0", ""),
        (">=1.1", "the index is gone"),
    ]
