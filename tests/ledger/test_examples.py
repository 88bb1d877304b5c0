"""What the blocks of a line look like as tensors, and which parameters of which model they are."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch

from pytest_memleak.events.places import Place
from pytest_memleak.events.recording import Reached, Recorded
from pytest_memleak.ledger.examples import Example, examples_of

BUILD, TRAIN, ELSE = Place("build.py:1", ""), Place("train.py:2", ""), Place("else.py:3", "")


class Known:
    """A recording that knows where some tensors come from."""

    device = "cpu"

    def __init__(self, places: dict[int, Place]) -> None:
        self._places = places

    def place_of(self, tensor: torch.Tensor) -> Place | None:
        return self._places.get(tensor.untyped_storage().data_ptr())

    def begin(self, smallest: int) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def end(self) -> None: ...
    def watch(self, reached: Reached | None, level: int = 0) -> None: ...
    def read(self) -> Recorded:
        raise NotImplementedError


def at(place: Place, *tensors: torch.Tensor) -> dict[int, Place]:
    return {tensor.untyped_storage().data_ptr(): place for tensor in tensors}


def model() -> torch.nn.Module:
    made = torch.nn.Sequential(torch.nn.Linear(8, 16, bias=False), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 4))
    made(torch.ones(2, 8)).sum().backward()
    return made


def test_parameters_buffers_and_gradients_have_names() -> None:
    made = model()
    outputs = torch.ones(64)
    weights = list(made.parameters())
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    recording = Known(
        at(BUILD, *weights) | at(TRAIN, *gradients[:1]) | at(ELSE, made.get_buffer("1.running_mean"), outputs)
    )
    everything = [*weights, *gradients, *made.buffers(), outputs]
    found = examples_of(recording, everything, [made, *made.modules()])
    assert found == {
        BUILD: Example("float32 [16, 8]", "0.weight and 4 more"),
        TRAIN: Example("float32 [16, 8]", "gradient of 0.weight"),
        ELSE: Example("float32 [64]", ""),  # the largest is no parameter, and is told as it is
    }


def test_a_model_inside_another_is_named_from_the_outermost() -> None:
    wrapper = torch.nn.ModuleDict({"student": model()})
    weight = wrapper.get_parameter("student.2.weight")
    found = examples_of(Known(at(BUILD, weight)), [weight], wrapper.modules())
    assert found == {BUILD: Example("float32 [4, 16]", "student.2.weight")}


def test_of_tied_weights_the_first_name_counts_and_they_are_one() -> None:
    first, last = torch.nn.Embedding(16, 8), torch.nn.Linear(8, 16, bias=False)
    last.weight = first.weight
    tied = torch.nn.Sequential(first, last)
    found = examples_of(Known(at(BUILD, first.weight)), [first.weight], [tied, first, last])
    assert found == {BUILD: Example("float32 [16, 8]", "0.weight")}


def test_tensors_of_another_device_give_no_names() -> None:
    made = torch.nn.Linear(4, 4, device="meta")
    assert examples_of(Known({0: BUILD}), [], [made]) == {}


def test_no_code_of_a_module_runs_and_nothing_is_kept() -> None:
    class Odd(torch.nn.Module):
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

    odd = Odd.__new__(Odd)
    made = model()
    weight = made.get_parameter("0.weight")
    recording = Known(at(BUILD, weight))
    examples_of(recording, [weight], [odd, made, *made.modules()])
    alive: list[weakref.ref[Any]] = [weakref.ref(made), weakref.ref(weight)]
    del made, weight
    gc.collect()
    assert [ref() for ref in alive] == [None, None]
