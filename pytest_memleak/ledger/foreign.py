"""Memory of tensors that is held by what the collector does not follow: numpy arrays, TorchScript, sparse layouts."""

from __future__ import annotations

import gc
import sys
from collections.abc import Collection, Iterator
from typing import Any

import torch

from pytest_memleak.ledger.looking import is_a, own_dict

_COMPRESSED_ROWS = ("crow_indices", "col_indices", "values")
_COMPRESSED_COLUMNS = ("ccol_indices", "row_indices", "values")
_SPARSE_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: _COMPRESSED_ROWS,
    torch.sparse_bsr: _COMPRESSED_ROWS,
    torch.sparse_csc: _COMPRESSED_COLUMNS,
    torch.sparse_bsc: _COMPRESSED_COLUMNS,
}
_base = torch._C.TensorBase.__dict__
_AT_ONCE = 100_000  # objects whose parts are listed in one call
_LONGEST_CHAIN = 20


def hidden_bytes(tensor: torch.Tensor, known: Collection[int]) -> int:
    """What a tensor without a storage of its own holds: sparse and MKL-DNN ones. `known` storages are not counted."""
    try:
        with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
            if _base["is_mkldnn"].__get__(tensor):
                return torch.Tensor.numel(tensor) * torch.Tensor.element_size(tensor)
            parts = [part.untyped_storage() for _, part in sparse_parts(tensor)]
            storages = {storage._cdata: storage.nbytes() for storage in parts}
            return sum(nbytes for key, nbytes in storages.items() if key not in known)
    except Exception:  # noqa: BLE001 - what cannot be looked into is not explained, and a subclass may raise anything
        return 0


def sparse_parts(tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The dense tensors that a sparse one consists of, each with what is written to mean it."""
    try:
        with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
            names = _SPARSE_PARTS.get(_base["layout"].__get__(tensor), ())
            return [(f".{name}()", getattr(torch.Tensor, name)(tensor)) for name in names]
    except Exception:  # noqa: BLE001 - as above
        return []


def numpy_views() -> Iterator[tuple[object, object]]:
    """Every numpy array that some object holds, and the tensor whose memory it shows."""
    numpy = sys.modules.get("numpy")
    kind = getattr(numpy, "ndarray", None)
    if kind is None:
        return
    base_of = kind.__dict__["base"].__get__
    objects = gc.get_objects()
    seen: set[int] = set()
    for first in range(0, len(objects), _AT_ONCE):
        # The collector does not track arrays; what holds them says so in one call, quicker than one by one.
        arrays = [part for part in gc.get_referents(*objects[first : first + _AT_ONCE]) if type(part) is kind]
        for array in arrays:
            if id(array) in seen:
                continue
            seen.add(id(array))
            base = base_of(array)
            for _ in range(_LONGEST_CHAIN):
                if type(base) is not kind:
                    break
                base = base_of(base)
            if is_a(base, torch.Tensor):
                yield array, base
    # Before Python 3.11, the list has this generator's frame in it, and the frame would keep the list.
    objects.clear()


def script_tensors() -> Iterator[tuple[object, str, object]]:
    """Parameters and buffers of TorchScript modules, which C++ holds: the outermost module, their name, the tensor."""
    kind = getattr(sys.modules.get("torch.jit"), "RecursiveScriptModule", None)
    if kind is None:
        return
    # Which classes are meant is asked once for each; the objects keep their classes alive.
    kinds: dict[int, bool] = {}
    for thing in gc.get_objects():
        cls = id(type(thing))
        if cls not in kinds:
            kinds[cls] = is_a(thing, kind)
        if kinds[cls]:
            yield from ((thing, name, part) for name, part in _of_script((own_dict(thing) or {}).get("_c"), ""))


def _of_script(module: Any, path: str) -> Iterator[tuple[str, object]]:
    if not is_a(module, torch._C.ScriptModule):
        return
    dictionaries: tuple[Any, ...] = (torch._C.ParameterDict(module), torch._C.BufferDict(module))
    for parts in dictionaries:
        yield from ((f"{path}.{name}", part) for name, part in parts.items())
    for name, inner in torch._C.ModuleDict(module).items():
        yield from _of_script(inner, f"{path}.{name}")
