"""A census reads what is there and runs nothing of the program's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_memleak.events.storages import cpu_storages, device_type_of, tensors_among, unique_cpu_storages


class Wrapper(torch.Tensor):
    """A wrapper subclass whose constructor was left half-way."""

    @staticmethod
    def __new__(cls) -> Wrapper:
        return torch.Tensor._make_wrapper_subclass(cls, (3,))

    def __tensor_flatten__(self) -> Any:
        raise AttributeError(f"no inner tensor yet: {self.inner}")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise AssertionError("nothing is computed")


class Loud(torch.Tensor):
    @property
    def device(self) -> Any:  # type: ignore[override]
        raise ValueError("not for you")

    @property
    def grad(self) -> Any:  # type: ignore[override]
        raise ValueError("not for you")


class FunctionMode(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was asked")


class DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was asked")


def test_a_half_built_wrapper_has_nothing_to_count_and_spoils_nothing() -> None:
    plain = torch.ones(3)
    storages = list(unique_cpu_storages([Wrapper(), plain]))
    assert [storage.data_ptr() for storage in storages] == [plain.data_ptr()]
    assert cpu_storages(Wrapper()) == []


def test_properties_of_a_subclass_are_not_asked() -> None:
    loud = torch.ones(3).as_subclass(Loud).requires_grad_()
    assert device_type_of(loud) == "cpu"
    assert len(list(unique_cpu_storages([loud]))) == 1
    assert device_type_of(torch.ones(3, device="meta")) == "meta"


@pytest.mark.parametrize("mode", [FunctionMode, DispatchMode])
def test_modes_of_the_program_see_no_census(mode: Any) -> None:
    weight = torch.ones(3, requires_grad=True)
    (weight * 2).sum().backward()
    sparse = torch.eye(3).to_sparse()
    rows = torch.eye(3).to_sparse_csr()
    with mode():
        assert len(list(tensors_among([weight, sparse, object()]))) == 3
        assert len(list(unique_cpu_storages([weight, sparse, rows]))) == 2 + 2 + 3
        assert device_type_of(weight) == "cpu"
