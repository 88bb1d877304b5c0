"""What an explanation must not do: hang, run the program's code, change or keep alive what it looks at."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from pytest_memleak.ledger import looking, search
from pytest_memleak.ledger.search import Search

Plant = Callable[[str], Any]
Explained = Callable[..., tuple[str, ...]]
ONE = "1 KiB in 1 tensor (float32 [256]): "

HOSTILE = """
RAN = []
def bad(*args, **kwargs):
    RAN.append(1)
    raise RuntimeError("no")
class Meta(type):
    __eq__ = __getattribute__ = __instancecheck__ = __subclasscheck__ = bad
    __hash__ = type.__hash__
class Hostile(metaclass=Meta):
    __eq__ = __bool__ = __repr__ = __str__ = __len__ = __iter__ = __getattr__ = __getattribute__ = bad
    __class__ = property(bad)
    __dict__ = property(bad)
    __hash__ = object.__hash__
class HostileDict(dict):
    __eq__ = __bool__ = __repr__ = __len__ = __iter__ = __getitem__ = keys = values = items = get = bad
class HostileList(list):
    __eq__ = __bool__ = __repr__ = __len__ = __iter__ = __getitem__ = index = bad
class HostileTensor(torch.Tensor):
    __torch_function__ = classmethod(bad)
    __eq__ = __bool__ = __repr__ = bad
class HostileError(Exception):
    args = property(bad)
    __traceback__ = property(bad)
    __cause__ = property(bad)
"""


def holding(make: str) -> str:
    return f"{HOSTILE}\ndef plant(t):\n    {make}\nplant(torch.zeros(256))\n"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (
            "global H; H = object.__new__(Hostile); next(iter([object.__setattr__(H, 'kept', [t])]))",
            # The class hides the instance's __dict__; before Python 3.11 the collector shows it.
            "H…[0]" if sys.version_info >= (3, 11) else "H…['kept'][0]",
        ),
        ("global H; H = HostileDict(); dict.__setitem__(H, 'k', HostileList([t]))", "H['k'][0]"),
        ("global H; H = {object.__new__(Hostile): t}", "H[<Hostile>]"),
        ("global H; H = [object.__new__(Hostile), t]", "H[1]"),
        ("global H; H = HostileError(t)", "H.args[0]"),
    ],
)
def test_hostile_objects_are_walked_without_running_them(plant: Plant, make: str, name: str) -> None:
    program = plant(holding(make))
    program.module.RAN.clear()
    assert program.explained() == (f"{ONE}module global leaky.{name}",)
    assert not program.module.RAN


def test_hostile_tensor(plant: Plant) -> None:
    program = plant(holding("global H; H = torch.Tensor._make_subclass(HostileTensor, t)"))
    program.module.RAN.clear()
    assert program.explained() == (f"{ONE}module global leaky.H",)
    assert not program.module.RAN


def test_properties_are_not_read(plant: Plant) -> None:
    source = """
RAN = []
class Lazy:
    @property
    def table(self): RAN.append(1)
LAZY = Lazy(); LAZY.other = Lazy(); LAZY.other.kept = torch.zeros(256)
"""
    program = plant(source)
    assert program.explained() == (f"{ONE}module global leaky.LAZY.other.kept",)
    assert not program.module.RAN


KEPT_IN_MANY_WAYS = """
import functools, threading
class Node: pass
def cycle():
    a = Node(); a.me = a; a.kept = torch.zeros(16)
def load():
    h = torch.zeros(17)
    raise ValueError
def stream():
    g = torch.zeros(18)
    yield
@functools.lru_cache
def mask(): return torch.zeros(19)
W = torch.ones(20, requires_grad=True)
def fill():
    global ERROR, STREAM, LOSS, CLOSED
    cycle()
    try: load()
    except ValueError as error: ERROR = error
    STREAM = stream(); next(STREAM)
    mask()
    LOSS = (W * 2).exp().sum()
    x = torch.zeros(21)
    CLOSED = lambda: x
fill()
def drop():
    global ERROR, STREAM, LOSS, CLOSED, W
    ERROR = STREAM = LOSS = CLOSED = W = None
    mask.cache_clear()
"""


def test_nothing_is_kept_alive(plant: Plant) -> None:
    program = plant(KEPT_IN_MANY_WAYS)
    tensors = [weakref.ref(tensor) for tensor in program.tensors()]
    storages = [weakref.ref(tensor.untyped_storage()) for tensor in program.tensors()]
    lines = program.explained(total=1 << 20, limit=20)
    assert len(lines) >= 7
    program.module.drop()
    gc.collect()
    assert [reference() for reference in tensors if reference() is not None] == []
    assert [reference() for reference in storages if reference() is not None] == []


def test_a_frame_holds_its_variables_no_longer_than_before(plant: Plant) -> None:
    source = """
def stream():
    h = torch.zeros(256)
    yield
    del h
    yield
STREAM = stream(); next(STREAM)
"""
    program = plant(source)
    (tensor,) = (weakref.ref(tensor) for tensor in program.tensors())
    assert "local 'h'" in program.explained()[0]
    next(program.module.STREAM)
    assert tensor() is None


def test_what_a_program_got_from_locals_is_left_to_it(plant: Plant) -> None:
    source = """
def stream():
    h = torch.zeros(256)
    mine = locals()
    yield
    yield mine
STREAM = stream(); next(STREAM)
"""
    program = plant(source)
    program.explained()
    assert "h" in next(program.module.STREAM)


@pytest.mark.parametrize(
    ("hold", "name"),
    [
        ("torch.zeros(16)", "leaky.KEPT["),
        ("node(Node)", "].t (and 9,999 more)"),
        ("node(Slots)", "].t (and 9,999 more)"),
        ("{'k': (torch.zeros(16),)}", "]['k'][0] (and 9,999 more)"),
    ],
)
def test_ten_thousand_alike_are_one_finding(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, hold: str, name: str
) -> None:
    source = f"""
class Node: pass
class Slots: __slots__ = ("t",)
def node(cls):
    made = cls(); made.t = torch.zeros(16)
    return made
KEPT = [{hold} for _ in range(10_000)]
"""
    steps = count_referrers(monkeypatch)
    (line,) = plant(source).explained()
    assert line.startswith("625 KiB in 10,000 tensors (float32 [16]): module global leaky.KEPT[")
    assert name in line
    assert len(steps) <= 8


def test_many_parameters_of_a_module_and_their_gradients(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
MODEL = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(500)])
for parameter in MODEL.parameters(): parameter.grad = torch.zeros_like(parameter)
del parameter
"""
    steps = count_referrers(monkeypatch)
    lines = plant(source).explained()
    assert len(lines) == 2
    assert all(" in 1,000 tensors " in line and "module global leaky.MODEL[" in line for line in lines)
    assert sum(".grad (and 999 more)" in line for line in lines) == 1
    assert len(steps) <= 20


def test_without_time_the_lines_say_so(plant: Plant) -> None:
    (line,) = plant("KEPT = [torch.zeros(256)]").explained(budget=0)
    assert line == f"{ONE}not traced: the search ended after 0 s"


def test_containers_of_the_caller_are_no_holders(plant: Plant) -> None:
    program = plant("def fill(x): x.append(torch.zeros(256))")
    mine: list[Any] = []
    program.module.fill(mine)
    assert "mine" in program.explained()[0]
    assert program.explained(ignore=[mine]) == (f"{ONE}held from C++ or unknown",)


def test_the_collector_is_left_as_it_was(explained: Explained) -> None:
    for state in (gc.enable, gc.disable):
        state()
        before = gc.isenabled()
        explained("KEPT = torch.zeros(256)")
        assert gc.isenabled() == before


def test_nothing_leaked_is_nothing_to_say(explained: Explained) -> None:
    assert explained("") == ()


def test_empty_tensors_do_no_harm(explained: Explained) -> None:
    lines = explained("KEPT = [torch.zeros(0), torch.zeros(0).to_sparse()]", total=64)
    assert lines == ("64 B of 64 B has no Python tensor: held from C++ or unknown",)


def test_a_very_deep_structure_ends(explained: Explained) -> None:
    source = """
DEEP = [torch.zeros(256)]
for _ in range(100): DEEP = [DEEP]
"""
    (line,) = explained(source)
    assert line == f"{ONE}not traced: too many objects refer to it"


def test_very_long_keys_are_cut(explained: Explained) -> None:
    (line,) = explained("KEPT = {'k' * 10_000: torch.zeros(256), 10 ** 10_000: 1}")
    assert len(line) < 200


def test_a_modules_namespace_is_not_emptied() -> None:
    namespace: dict[str, Any] = {"sys": sys, "kept": 1}
    exec("frame = sys._getframe()", namespace)
    assert looking.frame_locals(namespace["frame"])["kept"] == 1
    assert namespace["kept"] == 1


def count_referrers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each reading of the whole heap, which is what an explanation costs."""
    calls: list[int] = []
    original = Search.referrers

    def counted(self: Search, keys: Sequence[int]) -> list[tuple[int, int]]:
        calls.append(len(keys))
        return original(self, keys)

    monkeypatch.setattr(Search, "referrers", counted)
    return calls


def test_the_arguments_of_a_wrapped_search_are_no_holders(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    program = plant(
        "Config = type('Config', (), {'__module__': '_pytest.config'}); C = Config()\nC.kept = torch.zeros(256)"
    )
    monkeypatch.setattr(search, "get_referrers", lambda *objects: gc.get_referrers(*objects))
    calls = count_referrers(monkeypatch)
    assert program.explained() == (f"{ONE}module global leaky.C.kept",)
    assert len(calls) <= 5


def test_torch_is_not_asked_through_subclasses() -> None:
    class Loud(torch.Tensor):
        @classmethod
        def __torch_function__(cls, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("asked")

    tensor = torch.zeros(4).as_subclass(Loud)
    assert dict(looking.edges(tensor)).get(".grad_fn") is None


def test_nothing_waits_for_the_collector_to_be_let_go(plant: Plant) -> None:
    program = plant("import numpy\nARRAY = torch.zeros(256).numpy()")
    before = sys.getrefcount(program.tensors()[0])
    assert "numpy array" in program.explained()[0]
    after = sys.getrefcount(program.tensors()[0])
    assert after == before
