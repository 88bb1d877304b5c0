"""Whether this torch takes the simulated card: tried once, before anybody relies on it.

What torch asks of a card is private to it, and changes from release to release. A question that is put in another way
than here would be answered by nobody, or by what torch has without a card, and a number would be wrong. So what a
program is told is compared with what the allocator knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from pytest_memleak.cards.simulated.simulation import Simulation

_ELEMENTS = 1000


class Differs(Exception):
    """torch says something else than the card."""


def try_out(simulation: Simulation) -> None:
    """The card has to be on. It is empty afterwards, and has counted nothing."""
    _agree(_there(simulation))
    simulation.begin_threads()
    start = torch.rand(_ELEMENTS, device="cuda", requires_grad=True)
    start.clone().sum().backward()
    weight = torch.empty(64, 64, device="cuda")
    product = weight @ weight
    _agree(_tensors(start, product))
    _agree(_counters(simulation))
    _refuses(simulation)
    del start, weight, product
    simulation.release_workspaces()
    _agree(_counters(simulation))
    torch.cuda.empty_cache()
    _agree([("torch.cuda.memory_reserved() of an empty cache", torch.cuda.memory_reserved(), 0)])
    simulation.unknowns.reset()
    for index in range(len(simulation.cards)):
        torch.cuda.reset_peak_memory_stats(index)
        torch.cuda.reset_accumulated_memory_stats(index)
    _agree([("torch.cuda.max_memory_allocated() after a reset", torch.cuda.max_memory_allocated(), 0)])


Answers = Iterator[tuple[str, Any, Any]]
"""A question, what torch answers, and what the card does."""


def _agree(answers: Answers | list[tuple[str, Any, Any]]) -> None:
    for question, said, known in answers:
        if said != known:
            raise Differs(f"{question} is {said!r}, where the card says {known!r}")


def _there(simulation: Simulation) -> Answers:
    card = simulation.cards[0]
    yield "torch.cuda.is_available()", torch.cuda.is_available(), True
    yield "torch.accelerator.is_available()", torch.accelerator.is_available(), True
    yield "torch.accelerator.current_accelerator()", str(torch.accelerator.current_accelerator()), "cuda"
    yield "torch.cuda.device_count()", torch.cuda.device_count(), len(simulation.cards)
    yield "torch.cuda.get_device_name()", torch.cuda.get_device_name(), card.name
    yield "torch.cuda.get_device_capability()", torch.cuda.get_device_capability(), card.capability
    yield "the card's total_memory", torch.cuda.get_device_properties(0).total_memory, card.total


def _tensors(start: torch.Tensor, product: torch.Tensor) -> Answers:
    for words, tensor in (("a tensor", start), ("its gradient", start.grad), ("a product", product)):
        yield f"the device of {words}", str(tensor.device) if tensor is not None else None, "cuda:0"


def _counters(simulation: Simulation) -> Answers:
    allocator = simulation.allocator(0)
    stats = torch.cuda.memory_stats()
    peak = allocator.memory_stats_as_nested_dict()["allocated_bytes"]["all"]["peak"]
    yield "torch.cuda.memory_allocated()", torch.cuda.memory_allocated(), allocator.allocated
    yield "torch.cuda.max_memory_allocated()", torch.cuda.max_memory_allocated(), peak
    yield "torch.cuda.memory_reserved()", torch.cuda.memory_reserved(), allocator.reserved
    yield "torch.cuda.memory_stats(), requested", stats["requested_bytes.all.current"], allocator.requested
    yield "torch.cuda.mem_get_info()", torch.cuda.mem_get_info(), (allocator.free_on_card, allocator.total)
    if hasattr(torch.accelerator, "memory_allocated"):  # since torch 2.9
        yield "torch.accelerator.memory_allocated()", torch.accelerator.memory_allocated(), allocator.allocated
        yield "torch.accelerator.max_memory_allocated()", torch.accelerator.max_memory_allocated(), peak


def _refuses(simulation: Simulation) -> None:
    try:
        torch.empty(2 * simulation.cards[0].total, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        return
    raise Differs("twice the card was allocated, and it was not refused")
