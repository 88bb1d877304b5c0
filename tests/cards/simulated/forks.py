"""Forked children: one whose parent has used the card is refused in torch's words, as by a real card."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import pytest_memleak
from pytest_memleak.cards.simulated.simulation import Simulation
from tests.alone import simulated

WORDS = (
    "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use the 'spawn' start "
    "method"
)


@pytest.fixture(autouse=True)
def simulation() -> Iterator[Simulation]:
    with simulated() as made, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, of forks with several threads
        yield made
    made.unused()


def in_child(program: Callable[[], Any]) -> str:
    """What it returned in a forked child, or what it raised there, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = str(program())
        except RuntimeError as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return said


def on_card(*size: int) -> torch.Tensor:
    return torch.ones(*size, device="cuda")


def test_a_card_that_nobody_used_works_in_a_child() -> None:
    assert in_child(lambda: on_card(3).sum().item()) == "3.0"


MAKES: dict[str, Callable[[torch.Tensor], Any]] = {
    "ones": lambda held: on_card(3),
    "cuda": lambda held: torch.ones(3).cuda(),
    "to": lambda held: torch.ones(3).to("cuda"),
    "current_device": lambda held: torch.cuda.current_device(),
    "synchronize": lambda held: torch.cuda.synchronize(),
    "what the parent made": lambda held: held + 1,
}


@pytest.mark.parametrize("makes", MAKES.values(), ids=MAKES)
def test_a_child_is_refused_a_card_that_its_parent_used(makes: Callable[[torch.Tensor], Any]) -> None:
    held = on_card(4)
    assert in_child(lambda: makes(held)) == f"RuntimeError: {WORDS}"
    assert (held + 1).sum().item() == 8, "the parent goes on"


def test_what_is_made_of_the_parent_s_tensors_is_refused() -> None:
    held = on_card(4)
    assert WORDS in in_child(lambda: held + 1)


def test_a_child_may_do_without_the_card() -> None:
    held = [on_card(4)]
    before = torch.cuda.memory_allocated()

    def other() -> float:
        torch.manual_seed(3)
        held.clear()  # nobody is told
        return torch.ones(3).sum().item()

    assert in_child(other) == "3.0"
    assert in_child(torch.cuda.is_initialized) == "False"
    assert torch.cuda.memory_allocated() == before


def test_a_child_may_predict() -> None:
    on_card(4)
    pytest_memleak.predict(lambda card: on_card(3))
    assert in_child(lambda: pytest_memleak.predict(lambda card: on_card(3), card="1G").allocated_peak) == "512"


class OnCard(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return on_card(2)


def test_loaders_work_and_those_with_tensors_of_the_card_end() -> None:
    on_card(4)
    data: Any = [1.0, 2.0, 3.0]
    assert sum(batch.cuda().sum().item() for batch in DataLoader(data, num_workers=1)) == 6
    with pytest.raises(RuntimeError, match="Cannot re-initialize CUDA in forked subprocess"):
        list(DataLoader(OnCard(), num_workers=1, timeout=60))
