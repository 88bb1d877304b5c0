"""`pytest_memleak.predict`, in a process that has trained on the CPU before."""

from __future__ import annotations

import asyncio
import re
import warnings
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pytest_memleak
from pytest_memleak.cards.simulated.process import simulation_of
from pytest_memleak.cards.simulated.profiles import PROFILES, cards_of
from pytest_memleak.cards.simulated.simulation import Simulation
from pytest_memleak.errors import BadInput, Unavailable
from pytest_memleak.prediction import PredictedCard

MIB = 2**20

torch.ones(1, requires_grad=True).sum().backward()


def train(card: PredictedCard, rows: int = 8) -> Any:
    layer = torch.nn.Linear(1024, 1024, bias=False, device=card.device)
    optimizer = torch.optim.AdamW(layer.parameters())
    for _ in range(2):
        loss = layer(torch.randn(rows, 1024, device=card.device)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return layer, optimizer


def test_a_training_step_and_what_it_leaves() -> None:
    found = pytest_memleak.predict(train, card="24G")
    weight = 4 * MIB
    workspace = 2 * 32 * MIB  # of this thread, and of the one that runs backward passes
    # At the second step: the weight, its gradient and two moments; AdamW's temporaries come and go.
    assert found.fits
    assert 4 * weight + workspace < found.allocated_peak < 8 * weight + workspace + MIB
    assert found.requested_peak <= found.allocated_peak <= found.reserved_peak
    assert 3 * weight < found.allocated < 4 * weight + 2 * workspace
    assert found.allocated <= found.reserved <= found.reserved_peak
    assert found.doubt is None
    assert found.refused == 0
    assert not torch.cuda.is_available()


def test_is_told_its_card_and_the_name_decides_what_can_be_had() -> None:
    seen: list[Any] = []

    def look(card: PredictedCard) -> None:
        free, total = torch.cuda.mem_get_info()
        seen.append((card.name, card.total, free, total, torch.cuda.get_device_name()))

    pytest_memleak.predict(look, card="24G")
    pytest_memleak.predict(look, card="rtx3090")
    size, named = 24 * 1024 * MIB, PROFILES["rtx3090"]
    assert seen[0] == ("a card of 24 GiB", size, size, size, "a card of 24 GiB")
    assert seen[1] == (named.name, named.total, named.total - named.context, named.total, named.name)


def test_what_does_not_fit_says_so_and_holds_nothing() -> None:
    def fill(card: PredictedCard) -> None:
        held = []
        for _ in range(100):
            held.append(torch.empty(10 * MIB, dtype=torch.uint8, device=card.device))

    found = pytest_memleak.predict(fill, card="64MiB")
    assert not found.fits
    assert (found.allocated_peak, found.reserved_peak, found.allocated) == (60 * MIB, 60 * MIB, 0)
    assert found.refused == 1
    assert "Tried to allocate 10.00 MiB. GPU 0 has a total capacity of 64.00 MiB" in found.refusal
    assert "does not fit" in str(found)
    assert pytest_memleak.predict(fill, card="1001MiB").fits


def test_a_refusal_that_the_program_deals_with_is_counted_and_fits() -> None:
    def halve(card: PredictedCard) -> None:
        size = 256 * MIB
        while True:
            try:
                torch.empty(size, dtype=torch.uint8, device=card.device)
                return
            except torch.OutOfMemoryError:
                size //= 2

    found = pytest_memleak.predict(halve, card="100MiB")
    assert found.fits
    assert found.refused == 2
    assert found.allocated_peak == 64 * MIB


def test_lines_at_the_peak_add_up_to_it() -> None:
    def grow(card: PredictedCard) -> None:
        first = torch.empty(4 * MIB, dtype=torch.uint8, device=card.device)
        torch.empty(2 * MIB, dtype=torch.uint8, device=card.device)  # gone before the peak
        second = [torch.empty(3 * MIB, dtype=torch.uint8, device=card.device) for _ in range(2)]
        torch.cuda.reset_peak_memory_stats()
        del first, second

    found = pytest_memleak.predict(grow, card="1G")
    start = grow.__code__.co_firstlineno
    assert found.allocated_peak == 10 * MIB, "what the program resets is not believed"
    assert [(one.bytes, one.blocks, one.line.rpartition(":")[2], one.by) for one in found.at_peak] == [
        (6 * MIB, 2, str(start + 3), ""),
        (4 * MIB, 1, str(start + 1), ""),
    ]
    assert "tests/predictions.py" in found.at_peak[0].line
    assert sum(one.bytes for one in found.at_peak) == found.allocated_peak


def test_a_decision_by_an_unknown_value_is_no_answer() -> None:
    def decide(card: PredictedCard) -> None:
        if torch.randn(2000, 2000, device=card.device).sum() > 0:
            torch.empty(MIB, device=card.device)

    found = pytest_memleak.predict(decide)
    assert found.doubt is not None
    assert "predictions.py" in found.doubt
    assert "INCONCLUSIVE" in str(found)

    def log(card: PredictedCard) -> None:
        torch.randn(2000, 2000, device=card.device).sum().item()

    found = pytest_memleak.predict(log)
    assert (found.doubt, found.placeholders) == (None, 1)


def test_torch_is_left_as_it_was() -> None:
    def careless(card: PredictedCard) -> None:
        torch.set_default_dtype(torch.bfloat16)
        torch.set_grad_enabled(False)
        torch.manual_seed(1)
        raise KeyError("the program's own fault")

    torch.manual_seed(3)
    expected = torch.rand(1).item()
    torch.manual_seed(3)
    with pytest.raises(KeyError):
        pytest_memleak.predict(careless)
    assert torch.rand(1).item() == expected
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert not torch.cuda.is_available()


def test_host_memory_is_that_of_cpu_tensors() -> None:
    before = torch.ones(MIB)

    def offload(card: PredictedCard) -> None:
        torch.ones(8 * MIB, dtype=torch.uint8)
        torch.ones(2 * MIB, dtype=torch.uint8, device=card.device)

    found = pytest_memleak.predict(offload)
    assert 8 * MIB <= found.host_peak < 9 * MIB
    del before


@pytest.fixture
def simulation() -> Iterator[Simulation]:
    made = simulation_of(cards_of(""))
    made.on()
    yield made
    made.off()


def test_a_simulated_card_that_is_there_is_left_alone(simulation: Simulation) -> None:
    simulation.off()
    alone = pytest_memleak.predict(train, card="t4")
    simulation.on()
    kept = train(PredictedCard("", 0))
    before, seed = torch.cuda.memory_stats(), torch.cuda.initial_seed()
    assert before["allocated_bytes.all.current"] > 64 * MIB, "cuBLAS has workspaces"
    assert pytest_memleak.predict(train, card="t4") == alone
    assert torch.cuda.memory_stats() == before
    assert torch.cuda.initial_seed() == seed
    train(PredictedCard("", 0))
    assert torch.cuda.memory_allocated() == before["allocated_bytes.all.current"], "the workspaces are still there"
    del kept


def test_a_prediction_in_a_prediction() -> None:
    alone = pytest_memleak.predict(train, card="t4")

    def both(card: PredictedCard) -> Any:
        made = train(card)
        assert pytest_memleak.predict(train, card="t4") == alone
        assert torch.cuda.get_device_properties(0).total_memory == card.total
        return made

    found, once = pytest_memleak.predict(both, card="24G"), pytest_memleak.predict(train, card="24G")
    assert replace(found, host_peak=0) == replace(once, host_peak=0), "CPU tensors are everybody's"


def test_a_program_that_predicts_leaves_what_is_patched_alone() -> None:
    def nested(card: PredictedCard) -> None:
        for _ in range(2):
            pytest_memleak.predict(lambda inner: torch.as_tensor([1.0], device=inner.device))
        if torch.tensor(torch.randn(2000, 2000, device=card.device).sum().item()) > 5:
            torch.empty(MIB, device=card.device)

    before = torch.as_tensor, torch.asarray, vars(torch)["from_dlpack"], torch.tensor
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pytest_memleak.predict(nested).doubt is not None
    assert (torch.as_tensor, torch.asarray, vars(torch)["from_dlpack"], torch.tensor) == before


def test_a_program_that_has_not_run_is_no_answer() -> None:
    ran: list[int] = []

    async def wait(card: PredictedCard) -> None:
        ran.append(1)

    async def produce(card: PredictedCard) -> AsyncIterator[int]:
        ran.append(1)
        yield 1

    def generate(card: PredictedCard) -> Iterator[int]:
        ran.append(1)
        yield 1

    for program, words in (
        (wait, "returned a coroutine, which has not run"),
        (lambda card: wait(card), "returned a coroutine, which has not run"),
        (produce, "returned a generator, which has not run"),
        (lambda card: generate(card), "returned a generator, which has not run"),
    ):
        with pytest.raises(BadInput, match=words):
            pytest_memleak.predict(program)
    assert not ran
    assert pytest_memleak.predict(lambda card: asyncio.run(wait(card))).fits
    assert ran == [1]


def test_two_threads_cannot_predict_at_a_time() -> None:
    def both(card: PredictedCard) -> None:
        with ThreadPoolExecutor(1) as pool, pytest.raises(Unavailable, match="another thread of this process predicts"):
            pool.submit(pytest_memleak.predict, train).result()

    assert pytest_memleak.predict(both).fits
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(pytest_memleak.predict, train).result().fits, "one after the other"


def test_what_lies_on_another_card_is_not_counted_and_that_is_said(simulation: Simulation) -> None:
    held = torch.empty(MIB, device="cuda")
    table = torch.empty(1 * MIB, dtype=torch.uint8, device="cuda")

    for use in (lambda card: held + 1, lambda card: held.clone(), lambda card: held.cpu()):
        found = pytest_memleak.predict(use)
        assert found.doubt is not None
        assert "another simulated card, and is not counted on this one, at " in found.doubt
        assert "predictions.py:" in found.doubt
    assert pytest_memleak.predict(lambda card: table + 1).doubt is None, "libraries keep small tables"
    assert simulation.unknowns.doubt() is None
    kept: list[torch.Tensor] = []
    pytest_memleak.predict(lambda card: kept.append(torch.empty(2 * MIB, dtype=torch.uint8, device=card.device)))
    kept.pop().add_(1)
    assert "another simulated card" in (simulation.unknowns.doubt() or "")


@pytest.mark.parametrize(
    ("text", "kib"),
    [
        ("", 32 * 1024),
        (":4096:16", 64 * 1024),
        (":16:8", 128),
        (":4096:2:16:8", 8 * 1024 + 128),
        (":4096:1,:1024:2", 6 * 1024),
    ],
)
def test_workspaces_are_as_large_as_the_environment_says(text: str, kib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def multiply(card: PredictedCard) -> torch.Tensor:
        weight = torch.ones(512, 512, device=card.device)
        return weight @ weight

    if text:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", text)
    without = pytest_memleak.predict(lambda card: [torch.ones(512, 512, device=card.device) for _ in range(2)])
    assert pytest_memleak.predict(multiply).allocated_peak - without.allocated_peak == kib * 1024


def test_what_the_environment_asks_for_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "4096")
    with pytest.warns(UserWarning, match="Could not parse CUBLAS_WORKSPACE_CONFIG, using default workspace size of"):
        assert pytest_memleak.predict(train, card="t4").fits
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setenv("CUBLASLT_WORKSPACE_SIZE", "4096")
    with pytest.raises(BadInput, match="CUBLASLT_WORKSPACE_SIZE=4096: a simulated card has 1024, torch's default"):
        pytest_memleak.predict(train)
    monkeypatch.setenv("CUBLASLT_WORKSPACE_SIZE", "1024")
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    with pytest.raises(BadInput, match="is set, which switches off the allocator that counts: unset it"):
        pytest_memleak.predict(train)
    monkeypatch.delenv("PYTORCH_NO_CUDA_MEMORY_CACHING")
    assert pytest_memleak.predict(train).fits


def test_the_same_program_takes_the_same_every_time() -> None:
    first, *others = [pytest_memleak.predict(train, card="rtx3090") for _ in range(3)]
    assert all(other == first for other in others)


def test_says_what_it_does_not_know() -> None:
    with pytest.raises(BadInput, match="card='2xh100': a prediction is for one card; for several "):
        pytest_memleak.predict(train, card="2xh100")
    with pytest.raises(BadInput, match="card='rtx2000' is neither a size nor a card that can be simulated"):
        pytest_memleak.predict(train, card="rtx2000")
    with pytest.raises(BadInput, match="card='900G': a simulated card has 800 GiB at most"):
        pytest_memleak.predict(train, card="900G")


def test_the_program_in_the_reference_does_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[1] / "docs" / "reference.md"
    (program,) = re.findall(
        r"^```python\n(# predicted\.py\n.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    exec(compile(program, "predicted.py", "exec"), {})
    assert "predicted for NVIDIA GeForce RTX 3090 (23.69 GiB): fits" in capsys.readouterr().out
