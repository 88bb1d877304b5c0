from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_memleak.upstream.patches import Patch, Unrecognised


class Base:
    def plain(self, value: str) -> str:
        return f"plain {value}"

    @classmethod
    def of_class(cls, value: str) -> str:
        return f"{cls.__name__} {value}"

    @staticmethod
    def static(value: str) -> str:
        return f"static {value}"


class Child(Base):
    pass


def marking(mark: str) -> Callable[[Callable[..., str]], Callable[..., str]]:
    def wrap(found: Callable[..., str]) -> Callable[..., str]:
        return lambda *args: f"{mark}({found(*args)})"

    return wrap


@pytest.mark.parametrize(("name", "said"), [("plain", "plain x"), ("of_class", "Child x"), ("static", "static x")])
def test_every_kind_of_method_is_wrapped_and_restored(name: str, said: str) -> None:
    before = vars(Base)[name]
    with Patch(Base, name, marking("a")):
        assert getattr(Child(), name)("x") == f"a({said})"
        assert type(vars(Base)[name]) is type(before)
    assert vars(Base)[name] is before


def test_an_inherited_attribute_is_patched_where_it_was_asked_for_only() -> None:
    with Patch(Child, "of_class", marking("a")):
        assert Child.of_class("x") == "a(Child x)"
        assert Base.of_class("x") == "Base x"
    assert "of_class" not in vars(Child)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_patches_may_end_in_any_order(order: tuple[int, ...]) -> None:
    before = vars(Base)["of_class"]
    patches = {index: Patch(Base, "of_class", marking("abc"[index])) for index in range(3)}
    for patch in patches.values():
        patch.__enter__()
    assert Base.of_class("x") == "c(b(a(Base x)))"
    for index in order:
        patches.pop(index).__exit__(None, None, None)
        expected = "Base x"
        for left in patches:
            expected = f"{'abc'[left]}({expected})"
        assert Base.of_class("x") == expected
    assert vars(Base)["of_class"] is before


def test_one_patch_entered_twice_wraps_once() -> None:
    patch = Patch(Base, "static", marking("a"))
    with patch, patch:
        assert Base.static("x") == "a(static x)"
        with patch:
            pass
        assert Base.static("x") == "a(static x)"
    assert Base.static("x") == "static x"


def test_it_is_restored_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError), Patch(Base, "static", marking("a")):
        _ = 1 / 0
    assert Base.static("x") == "static x"


def test_functions_of_modules_and_attributes_of_objects() -> None:
    module = SimpleNamespace(mem_get_info=lambda device=None: "free")
    with Patch(module, "mem_get_info", marking("told"), parameters=["device"]):
        assert module.mem_get_info() == "told(free)"
    assert module.mem_get_info() == "free"


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(Unrecognised, match=r"Base\.no_such does not exist in this release"):
        Patch(Base, "no_such", marking("a")).__enter__()


def test_a_function_with_other_parameters_is_refused_and_left_alone() -> None:
    before = vars(Base)["of_class"]
    with pytest.raises(Unrecognised, match=r"Base\.of_class of this release has no parameter model"):
        Patch(Base, "of_class", marking("a"), parameters=["value", "model"]).__enter__()
    assert vars(Base)["of_class"] is before


def test_a_method_of_ones_own_goes_away_again() -> None:
    ended: list[str] = []

    def wrap(found: Any) -> Callable[[Base], None]:
        assert found is None
        return lambda self: ended.append("end")

    with Patch(Base, "__del__", wrap, own=True):
        Child()
        assert ended == ["end"]
    Child()
    assert ended == ["end"]
    assert "__del__" not in vars(Base)


def test_somebody_elses_replacement_is_told_and_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = vars(Base)["static"]
    patch = Patch(Base, "static", marking("a"))
    patch.__enter__()
    Base.static = staticmethod(lambda value: "foreign")  # type: ignore[method-assign]
    with pytest.warns(RuntimeWarning, match=r"Base\.static was replaced by somebody else"):
        patch.__exit__(None, None, None)
    assert vars(Base)["static"] is before


def test_a_patch_on_somebody_elses_replacement_gives_that_back() -> None:
    before = vars(Base)["static"]
    with Patch(Base, "static", marking("a")):
        below = vars(Base)["static"]
        foreign = staticmethod(lambda value: "foreign")
        Base.static = foreign  # type: ignore[method-assign]
        with Patch(Base, "static", marking("b")):
            assert Base.static("x") == "b(foreign)"
        assert vars(Base)["static"] is foreign
        Base.static = below  # type: ignore[method-assign]
    assert vars(Base)["static"] is before


def test_threads_that_come_and_go_leave_nothing_behind() -> None:
    before = vars(Base)["static"]
    shared = Patch(Base, "static", marking("s"))
    start = threading.Barrier(8)
    seen: list[bool] = []

    def work(index: int) -> None:
        start.wait()
        for _ in range(200):
            with shared, Patch(Base, "static", marking(str(index))):
                said = Base.static("x")
                seen.append("s(" in said and f"{index}(" in said)

    threads = [threading.Thread(target=work, args=[index]) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1600
    assert all(seen)
    assert vars(Base)["static"] is before


def test_what_somebody_else_put_there_stays_if_the_patch_yields() -> None:
    place = SimpleNamespace(call=lambda: "found")
    mine = None
    with Patch(place, "call", marking("outer"), yields=True), Patch(place, "call", marking("inner"), yields=True):
        below = place.call
        place.call = mine = lambda: f"mine({below()})"
    assert place.call is mine
    assert place.call() == "mine(inner(outer(found)))"
    with Patch(place, "call", marking("again"), yields=True):
        assert place.call() == "again(mine(inner(outer(found))))"
    assert place.call is mine
