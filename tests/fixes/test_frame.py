"""What every fix promises, on an upstream of a few lines."""

from __future__ import annotations

import gc
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_memleak import fixes
from pytest_memleak.errors import BadInput, Unavailable
from pytest_memleak.fixes.frame import Fix
from pytest_memleak.upstream.patches import Patch, Unrecognised
from tests.conftest import Run

EVERY, NONE = ">=1", "<1"


def load(model: str) -> list[str]:
    return [model]


@pytest.fixture
def upstream() -> SimpleNamespace:
    return SimpleNamespace(load=load, __name__="upstream")


def adding(word: str) -> Callable[[Any], Any]:
    return lambda found: lambda model: [*found(model), word]


def fix_for(upstream: SimpleNamespace, affected: str, name: str = "pile") -> Fix:
    return Fix(
        name,
        mends="loads pile up",
        links=["https://example.org/1"],
        affected={"pytest": affected},
        patches=lambda: [Patch(upstream, "load", adding(f"mended {name}"), parameters=["model"])],
        bugs={
            "early": lambda: [Patch(upstream, "load", adding("early"), parameters=["model"])],
            "late": lambda: [Patch(upstream, "load", adding("late"), parameters=["model"])],
        },
    )


def test_where_upstream_has_the_bug_it_is_mended_and_then_as_before(upstream: SimpleNamespace) -> None:
    fix = fix_for(upstream, EVERY)
    assert fix.needed()
    with fix.fixed() as applied:
        assert upstream.load("m") == ["m", "mended pile"]
    assert upstream.load is load
    assert applied.patched == ("upstream.load",)
    assert str(applied) == f"pile: patched upstream.load (pytest {pytest.__version__} has the bug)"


def test_where_upstream_is_right_nothing_is_patched(upstream: SimpleNamespace) -> None:
    fix = fix_for(upstream, NONE)
    assert not fix.needed()
    with fix.fixed() as applied:
        assert upstream.load is load
    assert str(applied) == (
        f"pile: nothing is patched (pytest {pytest.__version__} does not need it: the bug is in pytest <1)"
    )


def test_the_bug_comes_back_where_upstream_is_right_and_the_fix_mends_it(upstream: SimpleNamespace) -> None:
    fix = fix_for(upstream, NONE)
    with fix.bug():
        assert upstream.load("m") == ["m", "early"]
        assert fix.needed()
        with fix.fixed() as applied:
            assert upstream.load("m") == ["m", "early", "mended pile"]
        assert "where the bug was put back" in str(applied)
        assert upstream.load("m") == ["m", "early"]
    assert upstream.load is load


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_the_fix_lies_over_the_bug_whatever_came_first_and_ends_first(
    upstream: SimpleNamespace, order: tuple[int, ...]
) -> None:
    fix = fix_for(upstream, NONE)
    entered = [fix.fixed(), fix.bug(), fix.fixed(), fix.bug("late")]
    for one in (entered[place] for place in order):
        one.__enter__()
    flavour = "late" if order.index(3) > order.index(1) else "early"
    assert upstream.load("m") == ["m", flavour, "mended pile"]
    for place in order:
        entered[place].__exit__(None, None, None)
    assert upstream.load is load


def test_of_several_flavours_the_last_one_counts_until_it_ends(upstream: SimpleNamespace) -> None:
    fix = fix_for(upstream, NONE)
    with fix.bug():
        with fix.bug("late"):
            assert upstream.load("m") == ["m", "late"]
        assert upstream.load("m") == ["m", "early"]
    with pytest.raises(BadInput, match=r"the bug pile has no flavour 'never'; it has early, late"):
        fix.bug("never").__enter__()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_several_fixes_of_one_function_end_in_any_order(upstream: SimpleNamespace, order: tuple[int, ...]) -> None:
    entered = [fix_for(upstream, EVERY, name).fixed() for name in "abc"]
    for one in entered:
        one.__enter__()
    assert upstream.load("m") == ["m", "mended a", "mended b", "mended c"]
    for place in order:
        entered[place].__exit__(None, None, None)
    assert upstream.load is load


def test_twice_is_once(upstream: SimpleNamespace) -> None:
    fix = fix_for(upstream, EVERY)
    with fix.fixed(), fix.fixed():
        assert upstream.load("m") == ["m", "mended pile"]
    assert upstream.load is load


def test_threads_that_come_and_go_leave_what_they_found(upstream: SimpleNamespace) -> None:
    fix = fix_for(upstream, NONE)
    seen: list[list[str]] = []

    def work() -> None:
        for _ in range(50):
            with fix.bug(), fix.fixed():
                seen.append(upstream.load("m"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 400
    assert all(one == ["m", "early", "mended pile"] for one in seen)
    assert upstream.load is load


def test_an_upstream_that_is_not_recognised_is_refused_and_left_alone(upstream: SimpleNamespace) -> None:
    other = SimpleNamespace(load=lambda path: [path], __name__="upstream")
    before = other.load

    def patches() -> Iterator[Patch]:
        yield Patch(upstream, "load", adding("mended"))
        yield Patch(other, "load", adding("mended"), parameters=["model"])

    fix = Fix("pile", mends="", links=(), affected={"pytest": EVERY}, patches=patches, bugs={"early": patches})
    for enter in (fix.fixed, fix.bug):
        with pytest.raises(Unrecognised) as caught, enter():
            pass
        text = str(caught.value)
        assert text.startswith(f"pile does not recognise pytest {pytest.__version__}, and left it as it is: upstream")
        assert "has no parameter model" in text
        assert text.endswith("It was written for pytest >=1")
        assert (upstream.load, other.load) == (load, before)


def test_of_a_package_that_is_not_there(upstream: SimpleNamespace) -> None:
    fix = Fix("pile", mends="", links=(), affected={"no-such-package": EVERY}, patches=list, bugs={"early": list})
    assert not fix.needed()
    with pytest.raises(Unavailable, match="pile concerns no-such-package, which is not installed here"), fix.fixed():
        pass


def test_a_bug_that_no_release_has_is_there_where_it_was_put_and_nowhere_else(upstream: SimpleNamespace) -> None:
    def refused() -> list[Patch]:
        return [Patch(upstream, "load", adding("late"), parameters=["path"])]

    fix = Fix(
        "pile",
        mends="",
        links=(),
        affected={},
        patches=lambda: [Patch(upstream, "load", adding("mended"))],
        bugs={"early": lambda: [Patch(upstream, "load", adding("early"))], "late": refused},
    )
    assert fix.installed
    assert not fix.needed()
    with fix.fixed() as applied:
        assert upstream.load("m") == ["m"]
    assert str(applied) == "pile: nothing is patched (pytest-memleak does not need it: the bug is in no release)"
    with fix.bug() as put:
        assert fix.needed()
        assert upstream.load("m") == ["m", "early"]
        with fix.fixed() as applied:
            assert upstream.load("m") == ["m", "early", "mended"]
    assert str(put) == "bug pile: patched upstream.load (pytest-memleak: the bug is back)"
    assert str(applied) == "pile: patched upstream.load (pytest-memleak, where the bug was put back)"
    with pytest.raises(Unrecognised, match=r"recognise pytest-memleak, .*\. It was written for this release alone$"):
        fix.bug("late").__enter__()
    assert upstream.load is load
    assert not fix.needed()


def test_every_fix_can_be_found_and_says_what_it_is() -> None:
    told = (Path(__file__).parents[2] / "docs" / "fixes.md").read_text(encoding="utf-8")
    for name in fixes.names():
        fix = fixes.find(name)
        assert fix.name == name
        assert fix.mends
        assert all(link.startswith("https://") for link in fix.links)
        assert fix.affected or name == "protrain", "whose bugs are in no release of a package"
        assert f"| `{name}` |" in told, "docs/fixes.md lists every fix"
    with pytest.raises(BadInput, match=f"there is no fix 'mend_all'; there are {fixes.names()[0]}"):
        fixes.apply("mend_all")


@pytest.fixture
def listed(upstream: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Fix:
    fix = fix_for(upstream, EVERY)
    monkeypatch.setattr(fixes, "find", lambda name: fix)
    return fix


def test_a_program_s_own_fix_stays_until_it_is_undone(
    upstream: SimpleNamespace, listed: Fix, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with ExitStack() as undo:
        applied = undo.enter_context(fixes.apply("pile"))
        assert upstream.load("m") == ["m", "mended pile"]
        assert [(one.levelname, one.message) for one in caplog.records] == [("WARNING", str(applied))]
        fixes.apply("pile").undo()
        assert upstream.load("m") == ["m", "mended pile"]
    assert upstream.load is load
    applied.undo()
    assert upstream.load is load


def test_a_fix_that_nobody_keeps_stays(upstream: SimpleNamespace, listed: Fix) -> None:
    fixes.apply("pile")
    gc.collect()
    assert upstream.load("m") == ["m", "mended pile"]
    (undo,) = fixes._in_force
    undo.close()
    assert upstream.load is load
    assert not fixes._in_force


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_patch_that_ends_with_an_error_does_not_end_the_fix_for_good(upstream: SimpleNamespace) -> None:
    fix = fix_for(upstream, EVERY)
    entered = fix.fixed()
    entered.__enter__()
    upstream.load = lambda model: [model, "somebody else's"]
    with pytest.raises(RuntimeWarning, match="was replaced by somebody else"):
        entered.__exit__(None, None, None)
    assert upstream.load is load
    with fix.fixed() as applied:
        assert upstream.load("m") == ["m", "mended pile"]
        assert applied.patched


PROJECT = """
    import pytest
    from types import SimpleNamespace
    from pytest_memleak import fixes
    from pytest_memleak.fixes.frame import Fix
    from pytest_memleak.upstream.patches import Patch

    upstream = SimpleNamespace(load=lambda model: [model], __name__="upstream")

    def adding(word):
        return lambda found: lambda model: [*found(model), word]

    FIX = Fix("pile", mends="", links=(), affected={"pytest": "<1"},
              patches=lambda: [Patch(upstream, "load", adding("mended"))],
              bugs={"early": lambda: [Patch(upstream, "load", adding("early"))],
                    "late": lambda: [Patch(upstream, "load", adding("late"))]})
    fixes.names = lambda: ("pile",)
    fixes.find = lambda name: FIX

    @pytest.fixture
    def loaded():
        return upstream.load("m")

    @pytest.mark.memleak_fix("pile")
    @pytest.mark.memleak_bug("pile")
    def test_both(loaded):
        assert loaded == upstream.load("m") == ["m", "early", "mended"]

    @pytest.mark.memleak_bug("pile", flavour="late")
    def test_flavour():
        assert upstream.load("m") == ["m", "late"]

    @pytest.mark.memleak_fix("pile")
    def test_not_needed():
        assert upstream.load("m") == ["m"]

    def test_without():
        assert upstream.load("m") == ["m"]

    @pytest.mark.memleak_bug("pile")
    class TestBroken:
        def test_it(self):
            assert upstream.load("m") == ["m"]

    @pytest.mark.memleak_fix("pile", "pole")
    def test_unknown(): pass

    @pytest.mark.memleak_fix
    def test_which(): pass

    @pytest.mark.memleak_bug("pile", flavour="never")
    def test_no_such_flavour(): pass
"""


@pytest.fixture
def fixes_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back afterwards: the project's own are put in their place, in the same process."""
    for name in ("names", "find"):
        monkeypatch.setattr(fixes, name, getattr(fixes, name))


@pytest.mark.usefixtures("fixes_of_this_process")
def test_markers_patch_for_as_long_as_the_test_runs(run: Run) -> None:
    result = run(PROJECT, "-v")
    result.assert_outcomes(passed=4, failed=1, errors=3)
    text = " ".join(result.stdout.str().split())
    back = f"(pytest {pytest.__version__}: the bug is back)"
    mended = f"(pytest {pytest.__version__}, where the bug was put back)"
    assert f"upstream: bug pile: patched upstream.load {back} upstream: pile: patched upstream.load {mended}" in text
    assert f"upstream: pile: nothing is patched (pytest {pytest.__version__} does not need it" in text
    failure, _, _ = text.partition("judged:")
    assert f"upstream: bug pile: patched upstream.load {back}" in failure
    assert "memleak_fix: there is no fix 'pole'; there are pile" in text
    assert "memleak_fix: of which? Write memleak_fix('pile'); there are pile" in text
    assert "memleak_bug: the bug pile has no flavour 'never'; it has early, late" in text
