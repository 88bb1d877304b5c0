"""What kernels may take beyond what is simulated: never less than a card took."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pytest_memleak.cards.simulated.simulation import Simulation
from pytest_memleak.support import at_least


def of(*sizes: int, gradient: bool = False) -> torch.Tensor:
    return torch.randn(*sizes, device="cuda").requires_grad_(gradient)


def with_gradient(run: Callable[[], torch.Tensor]) -> Callable[[], object]:
    def both() -> object:
        found = run()
        return found.backward(torch.ones_like(found))

    return both


# What torch 2.11 had allocated at the peak on an H200, in bytes.
ON_A_CARD: dict[str, tuple[int, Callable[[], object]]] = {
    "median": (151_803_392, lambda: of(2048, 2048).median()),
    "sort of long rows": (308_428_288, lambda: of(64, 100_000).sort(-1)),
    "real transform": (50_332_672, lambda: torch.fft.rfft(of(64, 65536))),
    "singular values": (6_435_840, lambda: torch.linalg.svd(of(512, 512))),
    "eigenvalues": (25_822_720, lambda: torch.linalg.eigh(of(1024, 1024))),
    "qr": (18_879_488, lambda: torch.linalg.qr(of(1024, 1024))),
    "drawn with replacement": (
        51_202_560,
        lambda: torch.multinomial(of(64, 50_000).softmax(-1), 5, replacement=True),
    ),
    "patches": (111_149_056, with_gradient(lambda: F.unfold(of(4, 64, 64, 64, gradient=True), 3))),
    "convolution of rows": (
        180_622_336,
        with_gradient(lambda: F.conv1d(of(8, 80, 3000, gradient=True), of(512, 80, 3, gradient=True), padding=1)),
    ),
    "convolution of volumes": (
        52_731_904,
        with_gradient(lambda: F.conv3d(of(2, 16, 16, 56, 56, gradient=True), of(32, 16, 3, 3, 3, gradient=True))),
    ),
    "integers": (
        58_720_256,
        lambda: torch._int_mm(*(torch.randint(0, 9, (2048, 2048), device="cuda").to(torch.int8) for _ in range(2))),
    ),
}


@pytest.mark.parametrize("name", ON_A_CARD)
def test_no_card_took_more(name: str, simulation: Simulation) -> None:
    taken, run = ON_A_CARD[name]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    simulation.margins.take(0)
    run()
    predicted = torch.cuda.max_memory_allocated() - before
    assert predicted < taken <= simulation.margins.take(0) - before


@pytest.mark.parametrize(
    "run",
    [
        lambda: of(2048, 2048).sort(-1),
        lambda: of(2048, 2048) @ of(2048, 2048),
        lambda: of(2048, 2048).softmax(-1),
        lambda: torch.fft.fft2(of(256, 256)),
    ],
)
def test_what_is_simulated_as_it_is_has_none(run: Callable[[], object], simulation: Simulation) -> None:
    simulation.margins.take(0)
    run()
    assert simulation.margins.take(0) == 0


def test_it_says_which_operations(simulation: Simulation) -> None:
    simulation.margins.reset()
    torch.linalg.qr(of(64, 64))
    assert str(simulation.margins).endswith("is not simulated (linalg_qr)")
    with simulation.margins.set_aside():
        assert simulation.margins.take(0) == 0
    assert simulation.margins.take(0) > 0


# One copy of the gradient, which is one number for all, as it lies there. Older releases of torch choose other kernels.
@pytest.mark.skipif(not at_least(torch.__version__, "2.10"), reason="the figures are those of torch 2.11 on an H200")
@pytest.mark.parametrize(("width", "taken"), [(72, 11_586_560), (64, 10_553_856)])
def test_attention_copies_a_gradient_that_lies_in_another_way(width: int, taken: int, simulation: Simulation) -> None:
    simulation.release_workspaces()
    gc.collect()
    torch.cuda.empty_cache()  # blocks of earlier tests would be used as they are, remainders included
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend: Any = F.scaled_dot_product_attention
    rows, dropout = (500, 0.0) if width == 72 else (512, 0.1)
    attend(
        *(torch.randn(2, 8, rows, width, device="cuda", dtype=torch.float16, requires_grad=True) for _ in range(3)),
        dropout_p=dropout,
    ).sum().backward()
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(taken, rel=1e-3)
