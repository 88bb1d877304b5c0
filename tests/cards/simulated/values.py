"""What becomes of values that nobody computed, on the simulated card and on the CPU: they are read, and not gone by."""

from __future__ import annotations

import copy
import io
import json
import math
import numbers
import pickle
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F

from pytest_memleak.cards.simulated.profiles import cards_of
from pytest_memleak.cards.simulated.simulation import Simulation
from pytest_memleak.cards.simulated.stand_in import StandIn
from pytest_memleak.cards.simulated.unknowns import Unknowns

Program = Callable[[], Any]


def from_dlpack(tensor: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = vars(torch)["from_dlpack"](tensor)
    return made


def with_part(value: Any) -> torch.Tensor:
    made = torch.zeros(3)
    made[0] = value
    return made


@pytest.fixture
def unknowns(simulation: Simulation) -> Unknowns:
    return simulation.unknowns


def known(tensor: torch.Tensor) -> bool:
    return bool(torch.ops.memleak_card.knows(tensor))


def large() -> torch.Tensor:
    return torch.randn(1024, 1024, device="cuda")


def loss() -> torch.Tensor:
    return large().sum()


def number() -> Any:
    return loss().item()


def copied(*size: int) -> torch.Tensor:
    """On the CPU, and unknown."""
    return large().flatten()[: math.prod(size)].reshape(size).cpu()


def counts(device: str = "cpu") -> torch.Tensor:
    return (large()[0, :3] > 0).long().to(device)


def raising(program: Program, error: type[Exception]) -> Program:
    def run() -> None:
        with pytest.raises(error):
            program()

    return run


DECISIONS: dict[str, Program] = {
    "comparison of a number": lambda: loss().item() < 5,
    "equality of a number": lambda: loss().item() == 1.0,
    "number as a truth": lambda: bool(loss().item()),
    "number as an integer": lambda: int(loss().item()),
    "number rounded up": lambda: math.ceil(loss().item()),
    "number rounded to an integer": lambda: round(loss().item()),
    "number as a key": lambda: {loss().item(): 1},
    "the larger of two": lambda: max(loss().item(), 2.0),
    "what was calculated": lambda: round(sum([loss().item(), loss().item()]) / 2, 3) > 1,
    "perplexity": lambda: math.exp(loss().item()) < 50,
    "division by zero": raising(lambda: 1 / (loss().item() - loss().item()), ZeroDivisionError),
    "close to another": lambda: math.isclose(loss().item(), 1.0),
    "mean": lambda: statistics.mean([loss().item(), loss().item()]) > 1000,
    "quick mean": lambda: statistics.fmean(loss().item() for _ in range(3)) > 1000,
    "summed exactly": lambda: math.fsum([loss().item(), 1.0]) > 1000,
    "out of an iterator": lambda: math.fsum(loss().item() for _ in range(2)) > 1000,
    "multiplied": lambda: math.prod([loss().item(), 1.0]) > 1000,
    "length": lambda: math.hypot(loss().item(), 1) > 1000,
    "distance": lambda: math.dist([loss().item()], [0.0]) > 1000,
    "sign": lambda: math.copysign(1.0, loss().item()) > 0,
    "rest": lambda: math.fmod(loss().item(), 2.0) > 1,
    "fraction and whole": lambda: math.modf(loss().item())[1] > 1,
    "by its type": lambda: type(number())(2.5) > 1,
    "out of a list": lambda: copied(2).tolist()[0] > 0,
    "in a tensor again": lambda: bool(torch.tensor([loss().item(), 2.0]).mean() < 5),
    "in a nested list": lambda: bool(torch.tensor([[loss().item()], [2.0]]).mean() < 5),
    "as a tensor's part": lambda: bool(with_part(loss().item())[0] < 5),
    "as alpha in place": lambda: bool(torch.ones(()).sub_(torch.ones(()), alpha=loss().item()) < 5),
    "as value": lambda: bool(torch.ones(()).addcdiv_(torch.ones(()), torch.ones(()), value=loss().item()) < 5),
    "full_like": lambda: bool(torch.full_like(torch.ones(()), loss().item()) < 5),
    "new_full": lambda: bool(torch.ones(3).new_full((), loss().item()) < 5),
    "by DLPack": lambda: bool(from_dlpack(loss().cpu()) < 5),
    "with a tensor": lambda: bool(torch.ones(()) * loss().item() < 5),
    "tensor of the card": lambda: bool(loss()),
    "tensor of the card as an integer": lambda: int(loss()),
    "copy": lambda: bool(loss().cpu()),
    "comparison of a copy": lambda: bool(loss().cpu() < 3),
    "allclose": lambda: torch.allclose(copied(3), torch.ones(3)),
    "equal": lambda: torch.equal(copied(3), torch.ones(3)),
    "nonzero": lambda: copied(3).nonzero(),
    "mask": lambda: torch.ones(3)[copied(3) > 0],
    "integer": lambda: counts("cuda").sum().item(),
    "integer of a copy": lambda: counts()[0].item(),
    "integers in a list": lambda: counts().tolist(),
    "integers in numpy": lambda: counts().numpy(),
    "as a range": lambda: range(counts().sum()),
    "failure for its values": raising(lambda: F.binary_cross_entropy(copied(3) + 1, torch.ones(3)), RuntimeError),
    "written where others read": lambda: [one.data.copy_(large()[0, :3]) for one in [torch.zeros(3)]],
}
READINGS: dict[str, Program] = {
    "text": lambda: f"{loss().item():.3f} {loss():.3f} {loss()} {copied(2)}",
    "json": lambda: json.dumps({"loss": loss().item()}, indent=2),
    "sum": lambda: round(sum([loss().item(), 2.0]) / 2, 3),
    "finite": lambda: math.isfinite(loss().item()) and loss().item() < math.inf and loss().item() != math.nan,
    "itself": lambda: [number == number and number in [number] for number in [loss().item()]],
    "nothing": lambda: number() in (None, "1"),
    "float()": lambda: float(loss()) + float(loss().item()),
    "written to a part of the card's": lambda: large().__setitem__((0, 0), loss().item()),
    "DLPack for others": lambda: copied(3).__dlpack__(),
    "square root of a tensor": lambda: math.sqrt(torch.ones(1)) + sum(with_part(2.0)),
    "numpy": lambda: copied(3).numpy() * loss().item(),
    "list": lambda: [number / 2 for number in copied(3).tolist()],
    "copied integers": lambda: counts() * 2,
    "finite copy": lambda: bool(torch.isfinite(copied(3)).all()) and not bool(copied(3).isnan().any()),
    "finite on the card": lambda: bool(torch.isfinite(large()).all()) and not bool(large().isnan().any(0)[0]),
    "finite and copied": lambda: large().isnan().cpu().any().item() or bool(large().isinf()[0, 0]),
    "picked by a known mask": lambda: copied(3)[torch.tensor([True, False, True])],
    "filled by an unknown mask": lambda: torch.ones(3).masked_fill(copied(3) > 0, 2.0),
    "failure for its shape": raising(lambda: copied(3) + torch.ones(4), RuntimeError),
    "failure for want of memory": raising(lambda: copied(3).expand(2**36, 3).cuda(), torch.OutOfMemoryError),
    "statistics": lambda: copied(8).std(),
    "trained on": lambda: torch.nn.Linear(8, 2)(copied(4, 8)).square().mean().backward(),
}


@pytest.mark.parametrize("program", DECISIONS.values(), ids=DECISIONS)
def test_is_a_decision(unknowns: Unknowns, program: Program) -> None:
    program()
    assert unknowns.decisions.total() == 1, unknowns.decisions
    assert unknowns.doubt() is not None
    (place,) = unknowns.decisions
    assert "values.py:" in place


@pytest.mark.parametrize("program", READINGS.values(), ids=READINGS)
def test_is_no_decision(unknowns: Unknowns, program: Program) -> None:
    program()
    assert unknowns.doubt() is None


def test_assert_close_names_the_line(unknowns: Unknowns) -> None:
    with pytest.raises(AssertionError):
        torch.testing.assert_close(copied(3), torch.zeros(3))
    assert unknowns.decisions
    assert all("values.py:" in place for place in unknowns.decisions)


def test_a_number_is_a_float_and_stays_labelled(unknowns: Unknowns) -> None:
    number = loss().item()
    assert isinstance(number, float)
    for made in (
        number + 1,
        1 - number,
        -number,
        abs(number),
        number**2,
        round(number, 2),
        number % 2,
        *divmod(3, number),
    ):
        assert type(made) is StandIn
    assert (str(number), repr(number + 1), f"{number:.2f}", f"{1:.1f}") == ("1.0", "2.0", "1.00", "1.0")
    assert type(pickle.loads(pickle.dumps(number))) is float
    assert type(copy.deepcopy({"loss": number})["loss"]) is StandIn
    assert json.loads(json.dumps([number])) == [1.0]
    assert unknowns.doubt() is None
    assert unknowns.placeholders.total() == 1


def test_ordinary_numbers_are_told_of(unknowns: Unknowns) -> None:
    float(loss())
    (read, became) = unknowns.remarks()
    assert read.startswith("1 value that was read and that nobody knows: placeholders (1.0 each), at ")
    assert "became ordinary numbers, 1 time: what is decided by such a number is not noticed" in became


@pytest.mark.parametrize(
    "program",
    [
        lambda: float(number()),
        lambda: complex(number()),
        lambda: number().hex(),
        lambda: Fraction(number()),
        lambda: statistics.pstdev([number(), 2.0]) > 2,
        lambda: pickle.dumps(number()),
        lambda: copied(3).numpy() > 2,
        lambda: numpy.mean([number(), number()]) > 2,
        lambda: numpy.from_dlpack(copied(3)) > 2,
    ],
)
def test_where_a_number_is_let_go_of(unknowns: Unknowns, program: Program) -> None:
    program()
    assert unknowns.let_go
    assert all("values.py:" in place for place in unknowns.let_go)
    assert unknowns.doubt() is None


def test_a_number_is_found_wherever_it_is_compared(unknowns: Unknowns) -> None:
    for go_by in (lambda: sorted([number(), 5.0]), lambda: max(0, number()), lambda: min([number(), 2.0])):
        unknowns.reset()
        go_by()
        assert unknowns.doubt() is not None
    assert isinstance(number(), numbers.Real)
    assert type(sum([number(), 1])) is type(sum(map(copy.copy, [number()]))) is StandIn


def test_known_values_stay_known(unknowns: Unknowns) -> None:
    ids = torch.arange(6, device="cuda").reshape(2, 3)
    assert ids.sum().item() == 15
    assert type(ids.float().mean().item()) is float
    assert (ids * 2).cpu().tolist() == [[0, 2, 4], [6, 8, 10]]
    assert ids.cpu().numpy().sum() == 15
    assert torch.equal(ids.cpu(), torch.arange(6).reshape(2, 3))
    assert math.exp(0.0) == 1.0
    assert known(torch.tensor([1.0, 2.0]))
    assert known(torch.add(torch.ones(2), torch.ones(2), alpha=2.0))
    assert known(from_dlpack(torch.ones(2)))
    assert math.fsum(iter([1.0, 2.0])) == statistics.mean([2.0, 4.0]) == 3.0
    assert math.isclose(1.0, 1.0 + 1e-12)
    assert not any(unknowns.counters())


def test_what_is_made_of_a_copy_is_unknown(unknowns: Unknowns) -> None:
    one = copied(2, 3)
    for made in (
        one[0],
        one.t(),
        one.detach(),
        one.data,
        one + 1,
        one.to(torch.float64),
        one.sum().long(),
        torch.stack([torch.ones(2, 3), one]),
        F.pad(one, (1, 1)),
        torch.nn.Parameter(one),
        copy.deepcopy(one),
        torch.add(one, 1, out=torch.zeros(2, 3)),
        torch.zeros(2, 3).add_(one),
        one.cuda(),
        torch.ones(2, 3, device="cuda") * one.sum(),
        torch.vmap(lambda row: row * 2)(one),
    ):
        assert not known(made)
    for fresh in (torch.zeros_like(one), one.new_ones(2), one.new_tensor([1.0]), torch.isnan(one), one.isfinite()):
        assert known(fresh)
    assert unknowns.doubt() is None


@pytest.mark.usefixtures("simulation")
def test_parts_are_written_and_the_whole_is_unknown_until_all_of_it_is_known_again() -> None:
    whole = torch.zeros(4)
    whole[1] = loss()
    assert not known(whole)
    whole.fill_(0)
    assert known(whole)
    whole[2:] = copied(2)
    assert not known(whole)
    whole[:] = torch.ones(4)
    assert known(whole)
    assert whole.sum().item() == 4


@pytest.mark.usefixtures("simulation")
def test_gradients_of_unknown_values_are_unknown() -> None:
    for function in (torch.exp, torch.sigmoid, lambda one: F.layer_norm(one, (4,)), lambda one: one.softmax(-1)):
        leaf = copied(3, 4).requires_grad_()
        function(leaf).sum().backward()
        assert leaf.grad is not None
        assert not known(leaf.grad)
    layer = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    given = torch.ones(2)
    layer(copied(2, 4)).sum(0).backward(given)
    assert known(given)
    assert known(layer.weight)
    optimizer.step()
    assert not known(layer.weight)


@pytest.mark.usefixtures("simulation")
def test_gradients_through_the_card_are_unknown() -> None:
    leaf = torch.ones(4, requires_grad=True)
    (leaf.cuda() * large()[0, :4]).sum().backward()
    assert leaf.grad is not None
    assert not known(leaf.grad)


def test_it_can_be_stored(unknowns: Unknowns) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    weights = {"weight": copied(2, 3), "parameter": torch.nn.Parameter(copied(3))}
    file = io.BytesIO()
    torch.save({**weights, "loss": number()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded["weight"].shape == (2, 3)
    assert type(loaded["loss"]) is float
    assert pickle.loads(pickle.dumps(weights))["parameter"].requires_grad
    assert set(safetensors.load(safetensors.save({"weight": weights["weight"]}))) == {"weight"}
    layer = torch.nn.Linear(1024, 1024, device="cuda")
    torch.nn.init.normal_(layer.weight)
    other = torch.nn.Linear(1024, 1024)
    other.load_state_dict(layer.state_dict())
    assert not known(other.weight)
    assert not known(layer.cpu().weight)
    assert unknowns.doubt() is None


def test_it_outlives_the_card(simulation: Simulation) -> None:
    one, counted = copied(2, 3), counts()
    simulation.off()
    assert type(torch.ones(1).item()) is float
    assert vars(torch.Tensor).get("item") is None
    assert (one @ one.t()).shape == (2, 2)
    assert one.new_tensor([1.0, 2.0]).tolist() == [1.0, 2.0]
    assert one.new(3).shape == (3,)
    assert counted.tolist() == [0, 0, 0]
    assert isinstance(bool(one[0, 0] < 5), bool)
    assert copy.deepcopy(one).numpy().shape == pickle.loads(pickle.dumps(one)).shape == (2, 3)
    one.requires_grad_().exp().sum().backward()
    simulation.on()
    simulation.unknowns.reset()
    assert not known(one.sum())
    bool(one.sum() < 5)
    assert simulation.unknowns.doubt() is not None


def test_mixed_precision_skips_no_step(unknowns: Unknowns) -> None:
    """Numbers that nobody knows are taken to be finite, by the scaler of gradients too."""
    layer = torch.nn.Linear(1024, 1024, device="cuda")
    optimizer = torch.optim.Adam(layer.parameters())
    scaler = torch.amp.GradScaler("cuda")
    for _ in range(2):
        scaler.scale(layer(torch.randn(8, 1024, device="cuda")).square().mean()).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.state[layer.weight]["step"] == 2
    assert scaler.get_scale() == 65536.0
    assert unknowns.doubt() is None


def scripted(one: torch.Tensor) -> torch.Tensor:
    return torch.tensor(math.sqrt(4.0)) * one + torch.full([1], 0.5)


@pytest.mark.usefixtures("simulation")
def test_scripts_are_compiled_as_ever() -> None:
    assert torch.jit.script(scripted)(torch.ones(1)).item() == 2.5
    with torch.device("cuda"):
        assert torch.tensor([1.0]).is_cuda
        assert torch.full_like(torch.ones(2, device="cpu"), 1.0).is_cpu


@pytest.mark.usefixtures("simulation")
def test_functions_are_compiled_whole_as_ever() -> None:
    def function(one: torch.Tensor) -> torch.Tensor:
        two = torch.add(one, one, alpha=2).add_(1).addcmul_(one, one, value=0.5)
        two[0] = 7.0
        return two

    assert torch.compile(function, backend="eager", fullgraph=True)(torch.ones(2)).tolist() == [7.0, 4.5]


def test_other_threads_are_seen(simulation: Simulation) -> None:
    one = copied(3)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: bool(one.sum() < 5)).result()
    assert simulation.unknowns.doubt() is not None


def test_told_what_a_processor_holds(simulation: Simulation) -> None:
    (card,) = simulation.cards
    assert torch.cuda.get_device_properties(0).max_threads_per_multi_processor == card.threads == 2048
    assert [cards_of(name)[0].threads for name in ("t4", "rtx3090", "a100-40g", "l4", "h100")] == [
        1024,
        1536,
        2048,
        1536,
        2048,
    ]


def test_told_what_a_processor_has_of_its_own(simulation: Simulation) -> None:
    properties: Any = torch.cuda.get_device_properties(0)
    # Both were read on an H200.
    assert (properties.shared_memory_per_block_optin, properties.L2_cache_size) == (232448, 62914560)
    cards = {name: cards_of(name)[0] for name in ("t4", "rtx3090", "l4", "a100-40g", "h100")}
    assert [card.shared_memory for card in cards.values()] == [65536, 101376, 101376, 166912, 232448]
    assert [card.cache >> 20 for card in cards.values()] == [4, 6, 48, 40, 50]


def test_the_lines_of_libraries_are_not_named(unknowns: Unknowns) -> None:
    assert pytest.approx(1.0) == loss().item()
    (place,) = unknowns.decisions
    assert Path(place.rpartition(":")[0]).name == "values.py"
