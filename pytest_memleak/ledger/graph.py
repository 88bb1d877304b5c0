"""What holds tensors without Python's knowledge: autograd graphs, gradients, numpy arrays, TorchScript modules.

Nothing is unpacked where torch allows to look without (the hooks of ``saved_tensors_hooks`` are the program's code).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pytest_memleak.ledger.foreign import numpy_views, script_tensors, sparse_parts
from pytest_memleak.ledger.looking import LONGEST_LOOK, is_a, type_name

_base = torch._C.TensorBase.__dict__
_SHOWN = 4  # nodes of a graph in a message
GRAPH, ARRAY, SCRIPT = "autograd graph", "numpy array", "TorchScript module"


@dataclass(frozen=True)
class Link:
    """A tensor's memory, held from C++ by another tensor, by an array or by a module."""

    holder: int
    """The id of what holds it, among `Links.holders`."""
    label: str
    """``.grad``, or ``.grad_fn -> MeanBackward0 -> AddmmBackward0._saved_mat1``."""
    nbytes: int
    shape: str
    kind: str = GRAPH
    """How a line begins that tells of such a link; empty where the label says it: a gradient, a sparse part."""


class Links:
    """The links from all tensors that live, by the key of the storage they hold."""

    def __init__(self, first: Iterable[torch.Tensor], deadline: float) -> None:
        self.by_storage: dict[int, Link] = {}
        self.by_node: dict[int, Link] = {}
        self.alive: set[int] = set()
        """The storages of all tensors that Python sees."""
        self.holders: dict[int, object] = {}
        self.complete = True
        self._deadline = deadline
        self.nodes: dict[int, object] = {}
        self._raw_names: dict[type, tuple[str, ...]] = {}
        tensors = list({id(tensor): tensor for tensor in (*first, *living_tensors())}.values())
        for tensor in tensors:
            self.holders[id(tensor)] = tensor
            key = storage_key(tensor)
            if key is not None:
                self.alive.add(key[0])
                continue
            for name, part in sparse_parts(tensor):
                self._add(part, tensor, name, "")
                # Counted with the sparse tensor, which Python sees.
                self.alive.update((storage_key(part) or ())[:1])
        # The last result of a graph comes first: it holds all others' graphs, and is what a program keeps.
        tensors.sort(key=_age)
        for tensor in tensors:
            if time.monotonic() > deadline or len(self.nodes) > LONGEST_LOOK:
                self.complete = False
                break
            self._add_gradient(tensor)
            self._add_graph(tensor)
        for module, name, parameter in script_tensors():
            self._add(parameter, module, name, SCRIPT)
        for array, shown in numpy_views() if time.monotonic() < deadline else ():
            self._add(shown, array, "", ARRAY)

    def close(self) -> None:
        self.holders.clear()
        self.nodes.clear()

    def _add(self, part: object, holder: object, label: str, kind: str = GRAPH) -> None:
        if not is_a(part, torch.Tensor):
            return
        found = storage_key(part)
        if found is not None and found[1] and found[0] not in self.by_storage:
            self.holders[id(holder)] = holder
            self.by_storage[found[0]] = Link(id(holder), label, found[1], shape_of(part), kind)

    def _add_gradient(self, tensor: torch.Tensor) -> None:
        # Reading .grad of a tensor that is no leaf warns.
        if _is_leaf(tensor):
            self._add(read_attribute(tensor, "grad"), tensor, ".grad", "")

    def _add_graph(self, tensor: torch.Tensor) -> None:
        root = _grad_fn(tensor)
        if root is None or id(root) in self.nodes:
            return
        todo: list[tuple[Any, tuple[str, ...]]] = [(root, ())]
        self.nodes[id(root)] = root
        for node, above in todo:
            chain = (*above, type_name(type(node)))
            chain = chain if len(chain) <= _SHOWN else (chain[0], "…", *chain[-2:])
            label = ".grad_fn -> " + " -> ".join(chain)
            self.by_node[id(node)] = Link(id(tensor), label, 0, "")
            for name, part in self._saved(node):
                self._add(part, tensor, f"{label}.{name}")
            for below, _ in node.next_functions:
                if below is not None and id(below) not in self.nodes and len(self.nodes) <= LONGEST_LOOK:
                    self.nodes[id(below)] = below
                    todo.append((below, chain))

    def _saved(self, node: Any) -> Iterator[tuple[str, object]]:
        kind = type(node)
        if kind not in self._raw_names:
            self._raw_names[kind] = tuple(name for name in dir(kind) if name.startswith("_raw_saved"))
        for raw_name in self._raw_names[kind]:
            name = "saved_tensors" if raw_name == "_raw_saved_tensors" else raw_name.replace("_raw", "", 1)
            try:
                raw = getattr(node, raw_name)
            except RuntimeError:  # the graph was freed by a backward pass
                continue
            many = is_a(raw, tuple, list)
            for index, saved in enumerate(raw if many else (raw,)):
                for part in _packed(saved, node, name, index if many else None):
                    yield (f"{name}[{index}]" if many else name), part


def _age(tensor: torch.Tensor) -> int:
    """The less, the later its operation was recorded."""
    node = _grad_fn(tensor)
    return 0 if node is None else -int(node._sequence_nr())


def _is_leaf(tensor: torch.Tensor) -> bool:
    try:
        return bool(read_attribute(tensor, "is_leaf"))
    except RuntimeError:
        return False  # as below


def _grad_fn(tensor: torch.Tensor) -> Any:
    try:
        return read_attribute(tensor, "grad_fn")
    except RuntimeError:
        return None  # a view that was changed in a way which autograd refuses says so when it is asked


def _packed(saved: Any, node: Any, name: str, index: int | None) -> Iterator[object]:
    try:
        if hasattr(type(saved), "data"):
            part = saved.data
        else:
            # An older torch can only unpack, with the program's hooks if it has set any.
            part = getattr(node, name)
            part = part if index is None else part[index]
    except Exception:  # noqa: BLE001 - hooks of the program may raise anything; what cannot be read is not explained
        return
    yield from part if is_a(part, tuple, list) else (part,)


def living_tensors() -> Iterator[torch.Tensor]:
    """Every tensor that the collector sees."""
    kinds: dict[int, bool] = {}  # by id: a metaclass may define its own hash; the objects keep their classes alive
    for thing in gc.get_objects():
        kind = id(type(thing))
        if kind not in kinds:
            kinds[kind] = is_a(thing, torch.Tensor)
        if kinds[kind]:
            yield thing


def storage_key(tensor: torch.Tensor) -> tuple[int, int] | None:
    """What tells a tensor's storage from others, and its bytes; None for tensors without one (sparse, wrappers)."""
    try:
        with torch._C.DisableTorchFunctionSubclass():
            storage = torch.Tensor.untyped_storage(tensor)
            return storage._cdata, storage.nbytes()
    except Exception:  # noqa: BLE001 - a wrapper's own code may answer, and raise anything
        return None


def shape_of(tensor: torch.Tensor) -> str:
    """``float32 [512, 512]``."""
    dtype = str(read_attribute(tensor, "dtype")).removeprefix("torch.")
    try:
        with torch._C.DisableTorchFunctionSubclass():
            return f"{dtype} {list(torch.Tensor.size(tensor))}"
    except Exception:  # noqa: BLE001 - nested tensors have no shape, and a subclass answers with code of its own
        return f"{dtype} nested" if read_attribute(tensor, "is_nested") else f"{dtype}, of no known shape"


def device_type(tensor: torch.Tensor) -> str:
    """``cpu``, ``cuda``; empty where a subclass answers with code of its own that fails."""
    try:
        return str(read_attribute(tensor, "device").type)
    except Exception:  # noqa: BLE001 - whatever that code raises
        return ""


def read_attribute(tensor: torch.Tensor, name: str) -> Any:
    """An attribute as torch defines it, whatever a subclass makes of it."""
    with torch._C.DisableTorchFunctionSubclass():
        return _base[name].__get__(tensor)
