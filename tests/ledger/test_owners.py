"""One planted leak of each kind: the line names the variable that holds it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

Plant = Callable[[str], Any]
Explained = Callable[..., tuple[str, ...]]

ONE = "1 KiB in 1 tensor (float32 [256]): "

NAMED = {
    "global": ("KEPT = torch.zeros(256)", "module global leaky.KEPT"),
    "nested containers": (
        "CACHE = {'k': [0, (1, torch.zeros(256))]}",
        "module global leaky.CACHE['k'][1][1]",
    ),
    "instance of an instance": (
        """
class Inner: pass
class Outer: pass
OUTER = Outer(); OUTER.inner = Inner(); OUTER.inner.state = {3: torch.zeros(256)}
""",
        "module global leaky.OUTER.inner.state[3]",
    ),
    "deque and named tuple": (
        """
from collections import deque, namedtuple
Pair = namedtuple("Pair", "left right")
QUEUE = deque([Pair(1, torch.zeros(256))])
""",
        "module global leaky.QUEUE[0].right",
    ),
    "set": ("SEEN = {torch.zeros(256)}", "module global leaky.SEEN{…}"),
    "class attribute": (
        "class Trainer:\n    losses = [torch.zeros(256)]",
        "attribute leaky.Trainer.losses[0] (class attribute)",
    ),
    "lru_cache": (
        """
import functools
@functools.lru_cache
def build_mask(n): return torch.zeros(n)
build_mask(256)
""",
        "functools.lru_cache of leaky.build_mask",
    ),
    "unbounded cache, inside its value": (
        """
import functools
class Table:
    @functools.cache
    def build(self, n): return {"cos": torch.zeros(n)}
TABLE = Table(); TABLE.build(256)
""",
        "functools.lru_cache of leaky.Table.build(…)['cos']",
    ),
    "cached_property": (
        """
import functools
class Rope:
    @functools.cached_property
    def table(self): return torch.zeros(256)
ROPES = [Rope()]; ROPES[0].table
""",
        "module global leaky.ROPES[0].table",
    ),
    "partial": (
        "import functools\nJOBS = [functools.partial(print, 1, end=torch.zeros(256))]",
        "module global leaky.JOBS[0].keywords['end']",
    ),
    "dataclass with slots": (
        """
from dataclasses import dataclass
@dataclass(slots=True)
class Batch: ids: object
BATCHES = [Batch([torch.zeros(256)])]
""",
        "module global leaky.BATCHES[0].ids[0]",
    ),
    "buffer of a torch module": (
        """
MODEL = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Module())
MODEL[1].register_buffer("table", torch.zeros(256))
""",
        "module global leaky.MODEL[1].table",
    ),
    "closure": (
        """
def make():
    x = [torch.zeros(256)]
    def inner(): return x
    return inner
HOOKS = [make()]
""",
        "closure of leaky.make.<locals>.inner, variable 'x[0]', stored in leaky.HOOKS[0]",
    ),
    "default argument": ("def load(x=torch.zeros(256)): ...", "module global leaky.load.__defaults__[0]"),
    "several variables of a kept frame": (
        """
import sys
FRAMES = []
def convert(sources):
    value = sources["weight"][0]
    rows, other, alone = {"of it": (value.view(16, 16), 1)}, [torch.zeros(8)], torch.zeros(8)
    FRAMES.append(sys._getframe())
convert({"weight": [torch.zeros(256)]})
""",
        "local 'value', also \"sources['weight'][0]\" and \"rows['of it'][0]\", of frame convert (leaky.py:8), "
        "kept by leaky.FRAMES[0]",
    ),
    "several variables of a suspended generator": (
        """
def batches():
    h = torch.zeros(256)
    again = [h]
    yield 1
STREAM = batches(); next(STREAM)
""",
        "local 'h', also 'again[0]', of suspended generator batches (leaky.py:6), kept by leaky.STREAM",
    ),
    "suspended generator": (
        """
def batches():
    h = torch.zeros(256)
    yield 1
STREAM = batches(); next(STREAM)
""",
        "local 'h' of suspended generator batches (leaky.py:5), kept by leaky.STREAM",
    ),
    "exception's traceback": (
        """
def load():
    h = [torch.zeros(256)]
    raise ValueError
def outer(): load()
try: outer()
except ValueError as error: LAST_ERROR = error
""",
        "local 'h[0]' of frame load (leaky.py:5), kept by the traceback of ValueError stored in leaky.LAST_ERROR",
    ),
    "cause of an exception": (
        """
def load():
    h = torch.zeros(256)
    raise ValueError
def outer():
    try: load()
    except ValueError as error: raise KeyError from error
try: outer()
except KeyError as error: LAST = error
""",
        "local 'h' of frame load (leaky.py:5), kept by the traceback of ValueError stored in leaky.LAST.__cause__",
    ),
    "exception that nobody stored": (
        """
def load():
    h = torch.zeros(256)
    try: raise ValueError
    except ValueError as error: kept = error
load()
""",
        "local 'h' of frame load (leaky.py:5), kept by the traceback of ValueError"
        " (in a reference cycle that the collector has not freed)",
    ),
    "reference cycle": (
        """
class Node: pass
def grow():
    parent, child = Node(), Node()
    parent.children = [child]; child.parent = parent; child.weight = torch.zeros(256)
grow()
""",
        "reference cycle (garbage that the collector has not freed): Node.children[0] -> Node.parent,"
        " which holds Node.weight",
    ),
    "gradient": (
        "MODEL = torch.nn.Linear(1, 256, bias=False)\nMODEL.weight = torch.nn.Parameter(torch.zeros(256))\n"
        "MODEL.weight.grad = torch.ones(256)",
        "module global leaky.MODEL.weight.grad",
    ),
}


@pytest.mark.parametrize(("source", "owner"), NAMED.values(), ids=NAMED)
def test_the_line_names_the_variable(explained: Explained, source: str, owner: str) -> None:
    assert ONE + owner in explained(source)


def test_hidden_by_a_hook_of_a_tensor(explained: Explained) -> None:
    source = """
W = torch.zeros(1, requires_grad=True)
def register():
    x = torch.zeros(256)
    W.register_hook(lambda grad: x.sum())
register()
"""
    assert any("closure of leaky.register.<locals>.<lambda>, variable 'x'" in line for line in explained(source))


STEP = """
LOSSES = []
MODEL = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.GELU(), torch.nn.Linear(256, 4))
def step():
    LOSSES.append(MODEL(torch.zeros(128, 256)).square().mean())
step()
"""


def test_saved_tensors_that_have_no_python_tensor_are_found_in_the_autograd_graph(explained: Explained) -> None:
    lines = explained(STEP, total=4 * (256 * 256 + 256 + 4 * 256 + 4 + 1 + 3 * 128 * 256 + 128 * 4))
    graph = next(line for line in lines if "autograd graph" in line)
    assert "386 KiB in 4 tensors (float32 [128, 256] and others)" in graph
    assert "autograd graph: leaky.LOSSES[0].grad_fn -> MeanBackward0 -> " in graph
    assert "_saved_" in graph
    assert not any("unknown" in line for line in lines)


def test_saved_tensor_that_python_still_sees_is_named_by_its_graph(explained: Explained) -> None:
    source = """
W = torch.ones(256, requires_grad=True)
OUT = []
def step():
    h = W * 2
    OUT.append(h.square().sum())
step()
"""
    lines = explained(source)
    assert ONE + "autograd graph: leaky.OUT[0].grad_fn -> SumBackward0 -> PowBackward0._saved_self" in lines


def test_context_of_a_custom_function(explained: Explained) -> None:
    source = """
class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.table = torch.zeros(256)
        return x * 2
    @staticmethod
    def backward(ctx, grad): return grad
OUT = Double.apply(torch.ones(1, requires_grad=True))
SUM = Double.apply(torch.ones(1, requires_grad=True)) + 1
"""
    lines = explained(source)
    assert ONE + "module global leaky.OUT.grad_fn.table" in lines
    assert ONE + "autograd graph: leaky.SUM.grad_fn -> AddBackward0 -> DoubleBackward" in lines


@pytest.mark.skipif(not hasattr(torch._C._autograd.SavedTensor, "data"), reason="this torch can only unpack")
def test_hooks_that_pack_saved_tensors_are_not_run(plant: Plant) -> None:
    source = """
RAN = []
with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: RAN.append(1) or t):
    OUT = (torch.zeros(256, requires_grad=True) * 2).exp().sum()
"""
    program = plant(source)
    program.explained(total=4096)
    assert not program.module.RAN
    program.module.OUT.backward()  # or torch keeps the graph and its hooks for ever


def test_roots_of_the_caller_are_named(plant: Plant) -> None:
    class Case:
        pass

    program = plant("def fill(case): case.cache = {'x': [torch.zeros(256)]}")
    case: Any = Case()
    program.module.fill(case)
    (line,) = program.explained(roots={"self of test_x": case})
    assert line == ONE + "self of test_x, at .cache['x'][0]"
    (line,) = program.explained(roots={"fixture batch": case.cache["x"][0]})
    assert line == ONE + "fixture batch"


def test_threading_local(explained: Explained) -> None:
    if sys.version_info >= (3, 13):
        pytest.skip("the collector does not show the dictionaries of threads")
    source = "import threading\nLOCAL = threading.local(); LOCAL.mask = torch.zeros(256)"
    assert ONE + "module global leaky.LOCAL.mask" in explained(source)


def test_variable_of_a_function_that_another_thread_still_runs(plant: Plant) -> None:
    source = """
import threading
ready, done = threading.Event(), threading.Event()
def work():
    h = torch.zeros(256)
    ready.set()
    done.wait()
"""
    program = plant(source)
    worker = threading.Thread(target=program.module.work, name="loader")
    worker.start()
    program.module.ready.wait()
    lines = program.explained()
    program.module.done.set()
    worker.join()
    (line,) = lines
    assert line.startswith(ONE + "local 'h' of running frame work (leaky.py:")
    assert "thread loader" in line


def test_a_weak_dictionary_is_not_taken_for_the_holder(explained: Explained) -> None:
    source = """
import weakref
WEAK = weakref.WeakValueDictionary()
REAL = [torch.zeros(256)]
WEAK["x"] = REAL[0]
"""
    assert explained(source) == (ONE + "module global leaky.REAL[0]",)


def test_held_from_cpp_is_said_to_be_unknown(explained: Explained) -> None:
    source = "CAPSULE = torch.utils.dlpack.to_dlpack(torch.zeros(256))"
    (line,) = explained(source, total=1024)
    assert line.endswith("held from C++ or unknown")


def test_the_search_never_finds_its_own_containers(explained: Explained) -> None:
    source = "import numpy\nARRAYS = numpy.array([torch.zeros(256), torch.zeros(512)], dtype=object)"
    assert explained(source) == ("3 KiB in 2 tensors (float32 [512] and others): held from C++ or unknown",)


def test_bytes_that_nothing_explains_are_told(explained: Explained) -> None:
    lines = explained("KEPT = torch.zeros(256)", total=4096)
    assert lines[-1] == "3 KiB of 4 KiB has no Python tensor: held from C++ or unknown"


def test_a_users_name_is_preferred_to_torchs(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    program = plant("KEPT = {'a': [[torch.zeros(256)]]}")
    monkeypatch.setattr(torch, "leaky_cache", program.module.KEPT["a"][0][0], raising=False)
    assert program.explained() == (ONE + "module global leaky.KEPT['a'][0][0]",)
    del program.module.KEPT
    assert program.explained() == (ONE + "module global torch.leaky_cache",)


def test_tensors_that_share_a_storage_count_once(explained: Explained) -> None:
    (line,) = explained("KEPT = [torch.zeros(256)]; KEPT += [KEPT[0][:8], KEPT[0].view(16, 16)]")
    assert line.startswith("1 KiB in 1 tensor (float32 [")


def test_largest_first_and_no_more_than_the_limit(explained: Explained) -> None:
    source = "\n".join(f"class C{n}:\n    kept = [torch.zeros({n}, 256)]" for n in range(1, 9))
    lines = explained(source, limit=3)
    assert [line.split(" in ")[0] for line in lines] == ["8 KiB", "7 KiB", "6 KiB", "15 KiB"]
    assert lines[-1] == "15 KiB in 5 tensors: 5 other owners"
