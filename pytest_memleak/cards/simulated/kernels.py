"""What the simulated card does for an operation: results of the right shape in memory of the right size, and values
where they are known.

Sizes come from torch's own shape functions: the operation is run on tensors of the meta device. Everything that torch
puts together from other operations arrives here in pieces, as it would on a card.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._decomp import decomposition_table

from pytest_memleak.cards.simulated.operation import Operation, look_up
from pytest_memleak.cards.simulated.values import MOST_ELEMENTS, Unknowns, Values
from pytest_memleak.errors import Inconclusive

_META = torch.device("meta")


class Unsimulated(Inconclusive, NotImplementedError):
    """An operation of which nobody says what shape its results have."""


class Kernels:
    def __init__(self, values: Values, unknowns: Unknowns) -> None:
        self._values = values
        self._unknowns = unknowns
        self._operations: dict[Any, Operation] = {}

    def run(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """The kernel of every operation that has none of its own."""
        with torch._C.DisableTorchFunctionSubclass():
            operation = self._operations.get(op)
            if operation is None:
                operation = self._operations[op] = look_up(op)
            call = _Call(op, operation, args, kwargs)
            known = self._all_known(call)
            if operation.shape_from_values:
                return self._by_values(call, known)
            results = call.results(_on_meta(op, call.shadows, call.named_shadows))
            if known and call.elements(results) <= MOST_ELEMENTS:
                self._compute(call, results)
            else:
                for tensor in call.written():
                    self._values.written(tensor, known=False)
            return results

    def of(self, op: Any) -> Callable[..., Any]:
        """The same, to be registered for one operation."""

        def kernel(*args: Any, **kwargs: Any) -> Any:
            return self.run(op, *args, **kwargs)

        return kernel

    def _all_known(self, call: _Call) -> bool:
        elements = 0
        for tensor in call.read():
            elements += tensor.numel()
            if elements > MOST_ELEMENTS or not self._values.knows(tensor):
                return False
        return True

    def _by_values(self, call: _Call, known: bool) -> Any:
        """An operation whose results are as large as its values say."""
        if not known:
            for tensor in call.read():
                if not self._values.knows(tensor):
                    self._unknowns.decided(tensor)
                    break
            return _guessed(call)
        found = call.op(*map(self._on_cpu, call.args), **{n: self._on_cpu(v) for n, v in call.kwargs.items()})
        return self._to_card(found, call.device)

    def _to_card(self, found: Any, device: torch.device) -> Any:
        if isinstance(found, torch.Tensor):
            result = torch.empty_strided(found.size(), found.stride(), dtype=found.dtype, device=device)
            self._values.of(result).copy_(found)
            self._values.written(result, known=True)
            return result
        if isinstance(found, (list, tuple)):
            return type(found)(self._to_card(one, device) for one in found)
        return found

    def _compute(self, call: _Call, results: Any) -> None:
        """Runs it on the CPU, on the card's own memory; what the CPU cannot do stays unknown."""
        args = [self._on_cpu(one) for one in call.args]
        kwargs = {name: self._on_cpu(one) for name, one in call.kwargs.items()}
        try:
            if call.operation.random:
                with self._values.at_random():
                    found = call.op(*args, **kwargs)
            else:
                found = call.op(*args, **kwargs)
        except (NotImplementedError, RuntimeError):
            # No such kernel for the CPU, or not for this dtype.
            for tensor in [*call.written(), *_tensors(results)]:
                self._values.written(tensor, known=False)
            return
        for tensor in call.written():
            self._values.written(tensor, known=True)
        self._take_over(call, results, found)

    def _take_over(self, call: _Call, results: Any, found: Any) -> None:
        if isinstance(results, torch.Tensor):
            if not call.is_own(results):
                if isinstance(found, torch.Tensor) and found.shape == results.shape:
                    self._values.of(results).copy_(found)
                    self._values.written(results, known=True)
        elif isinstance(results, (list, tuple)):
            for result, one in zip(results, found, strict=True):
                self._take_over(call, result, one)

    def _on_cpu(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._values.of(value) if value.device.type == "cuda" else value
        if isinstance(value, torch.device):
            return torch.device("cpu") if value.type == "cuda" else value
        if isinstance(value, (list, tuple)):
            return type(value)(self._on_cpu(one) for one in value)
        return value


class _Call:
    """One call of an operation: its arguments, and what stands for them on the meta device."""

    __slots__ = ("_originals", "_own", "args", "device", "kwargs", "named_shadows", "op", "operation", "shadows")

    def __init__(self, op: Any, operation: Operation, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.op, self.operation, self.args, self.kwargs = op, operation, args, kwargs
        self.device: torch.device = torch.device("cuda", torch.cuda.current_device())
        self._own: dict[int, torch.Tensor] = {}
        """What stands for a tensor, by the tensor's id."""
        self._originals: dict[int, torch.Tensor] = {}
        """The tensor, by the id of what stands for it."""
        self.shadows = [self._shadow(one) for one in args]
        self.named_shadows = {name: self._shadow(one) for name, one in kwargs.items()}

    def _shadow(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            kind = value.device.type
            if kind == "cuda":
                shadow = self._own.get(id(value))
                if shadow is None:
                    if not self._own:
                        self.device = value.device
                    shadow = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=_META)
                    self._own[id(value)] = shadow
                    self._originals[id(shadow)] = value
                return shadow
            if kind == "cpu" and value.dim() and not self.operation.takes_cpu:
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, "
                    f"{self.device} and cpu! (in {self.op})"
                )
            return value.to(_META) if kind == "cpu" and value.dim() else value
        if isinstance(value, torch.device):
            if value.type == "cuda":
                self.device = value if value.index is not None else self.device
                return _META
            return value
        if isinstance(value, (list, tuple)):
            return type(value)(self._shadow(one) for one in value)
        return value

    def is_own(self, tensor: torch.Tensor) -> bool:
        """Whether it came in as an argument."""
        return id(tensor) in self._own

    def results(self, found: Any) -> Any:
        """Tensors on the card for what came out on the meta device."""
        views = self.operation.views
        if isinstance(found, (list, tuple)) and len(views) == len(found):
            made = {index: self._result(found[index], views[index]) for index in self.operation.order}
            return type(found)(made[index] for index in range(len(found)))
        return self._result(found, views[0] if views else None)

    def _result(self, found: Any, view: tuple[int, str] | None) -> Any:
        if isinstance(found, torch.Tensor):
            original = self._originals.get(id(found))
            if original is not None:
                if original.size() != found.size():
                    original.resize_(found.size())
                return original
            if found.device != _META:
                return found
            if view is not None:
                index, name = view
                base = self.args[index] if index < len(self.args) else self.kwargs[name]
                return torch.as_strided(
                    base, found.size(), found.stride(), base.storage_offset() + found.storage_offset()
                )
            return torch.empty_strided(found.size(), found.stride(), dtype=found.dtype, device=self.device)
        if isinstance(found, (list, tuple)):
            return type(found)(self._result(one, view) for one in found)
        return found

    def read(self) -> list[torch.Tensor]:
        names = self.operation.read
        arguments = self.op._schema.arguments
        found = [one for one, argument in zip(self.args, arguments, strict=False) if argument.name in names]
        found += [one for name, one in self.kwargs.items() if name in names]
        return [tensor for one in found for tensor in _tensors(one) if tensor.device.type == "cuda"]

    def written(self) -> list[torch.Tensor]:
        found = [
            self.args[index] if index < len(self.args) else self.kwargs.get(name)
            for index, name in self.operation.written
        ]
        return [tensor for one in found for tensor in _tensors(one)]

    def elements(self, results: Any) -> int:
        return sum(tensor.numel() for tensor in _tensors(results))


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for one in value for tensor in _tensors(one)]
    return []


def _on_meta(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    try:
        return op(*args, **kwargs)
    except NotImplementedError as error:
        pieces = decomposition_table.get(op)
        if pieces is not None:
            return pieces(*args, **kwargs)
        raise Unsimulated(
            f"the simulated card cannot run {op}: torch {torch.__version__} has no shape function for it"
        ) from error


def _guessed(call: _Call) -> Any:
    """A shape for what only values could tell: as if all elements were meant. The run is inconclusive already."""
    (first, *_) = call.read()
    if call.operation.name == "equal":
        return True
    if call.operation.name == "masked_select":
        return torch.empty(first.numel(), dtype=first.dtype, device=call.device)
    if call.operation.name.startswith("nonzero"):
        return torch.empty_strided(
            (first.numel(), first.dim()), (1, max(first.numel(), 1)), dtype=torch.int64, device=call.device
        )
    raise Unsimulated(f"{call.op} on the simulated card: its result is as large as values say that are not known")
