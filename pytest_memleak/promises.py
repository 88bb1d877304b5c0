"""What a test promises: its markers, the closest of each, and the run's defaults, read into one `Plan`.

A mistake is a `BadInput` naming file, line and the bad text; the plugin makes it an error of that one test.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark.structures import get_unpacked_marks
from _pytest.nodes import Node

from pytest_memleak import fixtures
from pytest_memleak.errors import BadInput
from pytest_memleak.marks import (
    Marker,
    P,
    allocator_warmup,
    gpu_cap,
    max_host_peak,
    max_leak,
    max_peak,
    memleak_bug,
    memleak_fix,
    memleak_off,
    no_nan,
    ranks,
    same_on_all_ranks,
    shown,
)
from pytest_memleak.plan import Cap, Plan, Ranks
from pytest_memleak.settings import SIMULATED, Settings


def read_ranks(item: pytest.Item) -> Ranks | None:
    """On how many ranks the test is to run; None: on this process alone."""
    return _read(item, ranks)


def check_ranks(plan: Plan | None, ranks: Ranks | None) -> None:
    """A promise of a rank that there is not would be judged by nobody."""
    for budget in (plan.peak, plan.host_peak) if plan is not None else ():
        if budget is None or budget.rank is None:
            continue
        if ranks is None:
            raise BadInput(f"{budget.source}: rank={budget.rank!r} is of a test on several ranks: add ranks(2)")
        if isinstance(budget.rank, int) and budget.rank >= ranks.size:
            raise BadInput(
                f"{budget.source}: rank={budget.rank}, and {ranks.source} has ranks 0 to {ranks.size - 1} only"
            )


def read_plan(item: pytest.Item, settings: Settings) -> Plan | None:
    """What is to be watched during `item`; None when nothing is."""
    is_off = _read(item, memleak_off) is not None

    def promise(marker: Marker[P]) -> P | None:
        return _read(item, marker) or (None if is_off else _default(settings, marker))

    promised = Plan(
        peak=promise(max_peak),
        host_peak=promise(max_host_peak),
        leak=promise(max_leak),
        cap=promise(gpu_cap),
        warmup=promise(allocator_warmup),
        no_nan=promise(no_nan),
        same=promise(same_on_all_ranks),
        fixes=promise(memleak_fix),
        bugs=promise(memleak_bug),
    )
    marked = promised != Plan() or settings.reporting or any(map(partial(_uses, item), _CARD_FIXTURES))
    baseline = settings.baseline is not None and not is_off
    cap = promised.cap or _run_cap(settings)
    if not marked and not baseline and cap is None and settings.backend != SIMULATED:
        return None
    return replace(
        promised,
        cap=cap,
        cap_is_asked=promised.cap is not None,
        baseline=baseline,
        report=settings.reporting,
        marked=marked,
    )


_CARD_FIXTURES = ("card", "memory", "warmup_spy")


def _uses(item: pytest.Item, name: str) -> bool:
    """Whether the test uses our fixture: the name may be a parameter's as well, or a fixture of the project's own."""
    if name not in getattr(item, "fixturenames", ()):
        return False
    for definition in reversed(getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {}).get(name, ())):
        if getattr(definition.func, "__module__", "") == fixtures.__name__:
            return True
        if name not in definition.argnames:
            return False  # it does not build on ours
    return True


def _read(item: pytest.Item, marker: Marker[P]) -> P | None:
    """What the closest of the item's marks of one name promises; None without one."""
    name = marker.__name__
    found = _closest(item, name)
    if found is None:
        return None
    mark, where = found
    try:
        promise = _bound(marker, mark)
    except BadInput as error:
        raise error.located(f"{where}: @pytest.mark.{name}") from None
    return promise(f"{where} @{name}")


def _bound(marker: Marker[P], mark: pytest.Mark) -> Callable[[str], P]:
    signature = inspect.signature(marker)
    try:
        bound = signature.bind(*mark.args, **mark.kwargs)
    except TypeError as error:
        written = ", ".join([*map(repr, mark.args), *(f"{name}={value!r}" for name, value in mark.kwargs.items())])
        raise BadInput(f"({written}) does not fit: {error}; allowed is {marker.__name__}({shown(signature)})") from None
    return marker(*bound.args, **bound.kwargs)


def _closest(item: pytest.Item, name: str) -> tuple[pytest.Mark, str] | None:
    """The mark that counts, and where it stands. The closest level wins: parameter set, function, class, module."""
    parameter_marks = getattr(getattr(item, "callspec", None), "marks", ())
    own = [mark for mark in item.own_markers if mark.name == name]
    levels: list[tuple[Node, list[pytest.Mark]]]
    levels = [(item, _among(own, parameter_marks)), (item, _not_among(own, parameter_marks))]
    for node in reversed(item.listchain()[:-1]):
        levels += [(node, marks) for marks in _by_class(node, name)]
    for node, marks in levels:
        if len(marks) > 1:
            raise BadInput(
                f"{mark_location(node, name)}: @pytest.mark.{name} stands {len(marks)} times on {node.name!r}: keep one"
            )
        if marks:
            return marks[0], mark_location(node, name)
    return None


def _by_class(node: Node, name: str) -> list[list[pytest.Mark]]:
    """A node's marks; those of a class apart from what it inherits, which pytest puts on one and the same node."""
    own = [mark for mark in node.own_markers if mark.name == name]
    cls = getattr(node, "obj", None)
    if len(own) < 2 or not isinstance(cls, type):
        return [own]
    written = [get_unpacked_marks(base, consider_mro=False) for base in cls.__mro__]
    added_later = _not_among(own, [mark for marks in written for mark in marks])
    return [added_later, *(_among(own, marks) for marks in written)]


def _among(marks: Iterable[pytest.Mark], others: Iterable[pytest.Mark]) -> list[pytest.Mark]:
    # By identity: two marks that say the same are still two.
    identities = {id(mark) for mark in others}
    return [mark for mark in marks if id(mark) in identities]


def _not_among(marks: Iterable[pytest.Mark], others: Iterable[pytest.Mark]) -> list[pytest.Mark]:
    identities = {id(mark) for mark in others}
    return [mark for mark in marks if id(mark) not in identities]


def mark_location(node: Node, name: str) -> str:
    """``tests/test_load.py:12``, as near to the marker's own line as the source tells."""
    path = getattr(node, "path", None)
    if path is None:
        return node.nodeid
    shown = _relative(Path(path), node.config.rootpath)
    tested: Any = getattr(node, "obj", None)
    try:
        lines, first = inspect.getsourcelines(inspect.unwrap(tested))
    except (OSError, TypeError):
        return shown
    numbered = enumerate(lines, start=max(first, 1))
    return f"{shown}:{next((number for number, line in numbered if name in line), max(first, 1))}"


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _default(settings: Settings, marker: Marker[P]) -> P | None:
    """What holds for tests without the marker. Its text was checked when the settings were read."""
    given = settings.defaults.get(marker.__name__)
    return None if given is None else marker(given.text)(given.source)


def _run_cap(settings: Settings) -> Cap | None:
    if settings.cap is None or settings.cap_given is None:
        return None
    return Cap(settings.cap, settings.cap_given.source)
