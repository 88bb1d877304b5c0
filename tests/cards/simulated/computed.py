"""What is computed for real is what the CPU comes to: views of another type, complex numbers, losses, products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pytest_memleak.cards.simulated.simulation import Simulation
from pytest_memleak.support import at_least

Function = Callable[[torch.Tensor], Any]

pytestmark = pytest.mark.usefixtures("simulation")


def known(tensor: torch.Tensor) -> bool:
    return bool(torch.ops.memleak_card.knows(tensor))


def pairs(numbers: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(numbers)


def spectrum(numbers: torch.Tensor) -> torch.Tensor:
    window = torch.hann_window(8, device=numbers.device)
    return torch.stft(numbers.flatten(), 8, window=window, return_complex=True)


def back(numbers: torch.Tensor) -> torch.Tensor:
    return torch.istft(spectrum(numbers), 8, window=torch.hann_window(8, device=numbers.device))


def written_in_part(numbers: torch.Tensor) -> torch.Tensor:
    found = torch.complex(numbers, numbers + 1)
    found.imag.copy_(numbers)
    return found


COMPUTED: dict[str, Function] = {
    "pairs as complex": pairs,
    "some pairs": lambda t: pairs(t[1:, 1:]),
    "complex as pairs": lambda t: torch.view_as_real(torch.complex(t, t + 1)),
    "some complex": lambda t: torch.view_as_real(torch.complex(t, t + 1)[1:, 2:]),
    "real": lambda t: torch.complex(t, t + 1).real,
    "imaginary": lambda t: torch.complex(t, t + 1).imag,
    "conjugate": lambda t: torch.complex(t, t + 1).conj(),
    "conjugate, copied": lambda t: pairs(t).conj().clone(),
    "conjugate's part": lambda t: torch.complex(t, t + 1).conj().imag,
    "conjugate, changed": lambda t: pairs(t).conj().add_(1),
    "negative": torch._neg_view,
    "adjoint": lambda t: pairs(t).mH,
    "product": lambda t: pairs(t).conj() * pairs(t + 1),
    "product with the adjoint": lambda t: pairs(t) @ pairs(t).mH,
    "absolute": lambda t: pairs(t).abs(),
    "polar": lambda t: torch.polar(t, t),
    "written in part": written_in_part,
    "bits": lambda t: t.view(torch.int32),
    "halves of them": lambda t: t.view(torch.int16),
    "two of them": lambda t: t[1:].view(torch.int64),
    "fft": torch.fft.fft,
    "fft of real numbers": lambda t: torch.fft.irfft(torch.fft.rfft(t, dim=1), dim=1),
    "fft2": lambda t: torch.fft.ifft2(torch.fft.fft2(t)).real,
    "hfft2": lambda t: torch.fft.hfft2(t[..., 0]),
    "hfftn": lambda t: torch.fft.hfftn(t[..., 0]),
    "stft": spectrum,
    "istft": back,
    "mse": lambda t: F.mse_loss(t, t * 2),
    "mse, summed": lambda t: F.mse_loss(t, t * 2, reduction="sum"),
    "mse, each": lambda t: F.mse_loss(t, t * 2, reduction="none"),
    "mse into a tensor": lambda t: torch.ops.aten.mse_loss.out(t, t * 2, out=t.new_empty(0)),
    "smooth l1": lambda t: F.smooth_l1_loss(t, t * 2),
    "smooth l1, summed": lambda t: F.smooth_l1_loss(t, t * 2, reduction="sum"),
    "huber": lambda t: F.huber_loss(t, t * 2),
    "soft margin": lambda t: F.soft_margin_loss(t, t.sign()),
    "matrix and vector": lambda t: t[..., 0] @ t[0, :, 1],
    "their sum": lambda t: torch.addmv(t[:, 0, 0], t[..., 0], t[0, :, 1]),
    "cummax": lambda t: t.cummax(1)[0],
    "cummin": lambda t: t.flip(1).cummin(1)[1],
    "added into an argument": lambda t: torch.add(t, 1, out=t),
    "into a larger tensor": lambda t: torch.add(t, 1, out=torch.zeros(3, 4, 4, device=t.device)[..., ::2]),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("function", COMPUTED.values(), ids=COMPUTED)
def test_computed_as_by_the_cpu(simulation: Simulation, function: Function) -> None:
    numbers = torch.arange(24.0).reshape(3, 4, 2)
    wanted = function(numbers.clone())
    found = function(numbers.cuda())
    assert known(found)
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert (found.is_conj(), found.is_neg()) == (wanted.is_conj(), wanted.is_neg())
    assert torch.allclose(found.cpu(), wanted, rtol=1e-4, atol=1e-4)
    assert simulation.unknowns.doubt() is None


@pytest.mark.parametrize(("size", "is_known"), [(4, True), (2048, False)])
def test_positions_as_complex_numbers(size: int, is_known: bool) -> None:
    """Llama 4 turns queries and keys by them."""
    query = torch.randn(2, size, 8, 16)
    angles = torch.outer(torch.arange(size), torch.arange(8.0).neg().exp())

    def turned(query: torch.Tensor) -> torch.Tensor:
        turns = torch.polar(torch.ones_like(angles), angles).to(query.device)
        pairs = torch.view_as_complex(query.float().reshape(*query.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns[None, :, None]).flatten(3).type_as(query)

    leaves = [query.clone().requires_grad_(), query.cuda().requires_grad_()]
    before = torch.cuda.memory_allocated()
    wanted, found = (turned(leaf) for leaf in leaves)
    assert torch.cuda.memory_allocated() - before >= 4 * query.numel()
    assert known(found) == is_known
    for result in (wanted, found):
        torch.autograd.backward(result.square().sum())
    ours, theirs = leaves[1].grad, leaves[0].grad
    assert ours is not None
    assert theirs is not None
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert not is_known or torch.allclose(ours.cpu(), theirs, atol=1e-5)


def test_a_complex_product_takes_what_complex_numbers_take() -> None:
    numbers = torch.randn(1024, 1024, 2, device="cuda")
    before = torch.cuda.memory_allocated()
    product = torch.view_as_complex(numbers) * torch.view_as_complex(numbers)
    assert product.dtype == torch.complex64
    assert torch.cuda.memory_allocated() - before == 8 * 1024 * 1024


def test_what_is_written_in_part_is_not_known() -> None:
    whole = torch.empty(4, device="cuda")
    whole[1:] = torch.ones(3, device="cuda")
    assert not known(whole)


@pytest.mark.skipif(
    not at_least(torch.__version__, "2.7") and torch.version.cuda is not None,
    reason="torch 2.6 asks its own CUDA for one, and the run is inconclusive",
)
def test_a_generator_of_the_card() -> None:
    generator = torch.Generator(device="cuda")
    assert generator.device == torch.device("cuda", 0)

    def drawn() -> list[float]:
        found: list[float] = torch.randn(4, generator=generator, device="cuda").tolist()
        return found

    generator.manual_seed(3)
    first, state, second = drawn(), generator.get_state(), drawn()
    assert first != second
    assert state.numel() == 16
    generator.set_state(state)
    assert drawn() == second
    generator.manual_seed(3)
    assert drawn() == first
    torch.randn(1024, 1024, generator=generator, device="cuda")
    assert torch.randperm(4, generator=generator, device="cuda").sum().item() == 6
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator but found 'cpu'"):
        torch.randn(4, generator=torch.Generator(), device="cuda")


def test_random_numbers_follow_the_seed() -> None:
    def drawn() -> list[float]:
        found: list[float] = torch.rand(4, device="cuda").tolist()
        return found

    torch.manual_seed(5)
    first = drawn()
    assert first != drawn()
    assert torch.cuda.initial_seed() == 5
    torch.cuda.manual_seed(5)
    assert drawn() == first
    state = torch.cuda.get_rng_state()
    second = drawn()
    torch.cuda.set_rng_state(state)
    assert drawn() == second
    with torch.random.fork_rng():
        drawn()
