"""Storages by themselves on the simulated card: what they take, what they hold, and that torch has its own again."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_memleak.cards.simulated.profiles import cards_of
from pytest_memleak.cards.simulated.simulation import Simulation
from tests.cards.simulated.conftest import Events

# Not typed by torch.
Storage: Any = torch.UntypedStorage
Typed: Any = torch.TypedStorage

pytestmark = [
    pytest.mark.usefixtures("simulation"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
]


def test_a_storage_is_a_block_for_as_long_as_it_lives(events: Events) -> None:
    made: list[Any] = []
    assert events(lambda: made.append(Storage(1000, device="cuda"))) == [1000]
    assert (str(made[0].device), made[0].nbytes(), made[0].is_cuda) == ("cuda:0", 1000, True)
    assert torch.cuda.memory_allocated() == 1024
    assert events(made.clear) == [-1000]
    assert events(lambda: Storage(0, device="cuda")) == events(lambda: Storage(device="cuda")) == []
    assert events(lambda: Typed(10, dtype=torch.float64, device="cuda")) == [80, -80]


def test_content_of_its_own() -> None:
    assert Storage([1, 2, 3], device="cuda").tolist() == [1, 2, 3]
    assert Typed([1.5, 2.5], dtype=torch.float32, device=torch.device("cuda", 0)).tolist() == [1.5, 2.5]
    storage = Storage(4, device="cuda").fill_(7)
    storage[1] = 9
    assert storage.tolist() == storage.cpu().tolist() == [7, 9, 7, 7]


def test_a_resized_storage_gets_its_new_block_before_it_gives_the_old_one_back(events: Events) -> None:
    numbers = torch.arange(100, device="cuda")
    storage: Any = numbers.untyped_storage()
    assert events(lambda: storage.resize_(400)) == [400, -800]
    assert numbers[:50].tolist() == list(range(50))
    assert events(lambda: storage.resize_(1600)) == [1600, -400]
    assert events(lambda: storage.resize_(0)) == [-1600]
    assert (storage.nbytes(), str(storage.device)) == (0, "cuda:0")
    assert events(lambda: storage.resize_(800)) == [800]
    assert storage.data_ptr() == numbers.data_ptr()


def test_weights_that_are_sharded_leave_and_come_back(events: Events) -> None:
    flat = torch.arange(64.0, device="cuda")
    weight = flat[:32].view(4, 8)
    shard = flat[:16].clone()
    size = flat.untyped_storage().nbytes()
    assert events(lambda: flat.untyped_storage().resize_(0)) == [-256]

    def gather() -> None:
        flat.untyped_storage().resize_(size)
        flat.copy_(torch.cat([shard] * 4))

    assert [one for one in events(gather) if abs(one) == 256] == [256, 256, -256]
    assert weight.sum() == 2 * sum(range(16))


def test_more_than_there_is_changes_nothing(simulation: Simulation) -> None:
    storage = Storage([1, 2], device="cuda")
    before = torch.cuda.memory_allocated()
    asks: list[Any] = [lambda: storage.resize_(1 << 40), lambda: Storage(1 << 40, device="cuda")]
    for ask in asks:
        with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory. Tried to allocate 1024.00 GiB"):
            ask()
    assert (storage.tolist(), torch.cuda.memory_allocated()) == ([1, 2], before)
    with pytest.raises(RuntimeError, match="not resizable"):
        storage[:1].resize_(5)


def test_a_copy_is_of_the_whole_storage(events: Events) -> None:
    numbers = torch.arange(1000.0, device="cuda")
    kept: list[torch.Tensor] = []
    # torch makes an empty scalar, which then gets the storage.
    assert events(lambda: kept.append(copy.deepcopy(numbers[500:600]))) == [4000, 4, -4]
    assert kept[0].tolist() == list(range(500, 600))
    assert kept[0].untyped_storage().nbytes() == 4000
    layer = torch.nn.Linear(8, 8, device="cuda")
    copied: torch.nn.Linear = copy.deepcopy(layer)
    assert copied.weight.data_ptr() != layer.weight.data_ptr()
    assert torch.equal(copied.weight, layer.weight)
    storage: Any = numbers.untyped_storage()
    assert events(lambda: storage.clone()) == [4000, -4000]


def test_values_of_the_largest_that_are_computed_stay_with_their_copies() -> None:
    numbers = torch.arange(1 << 18, device="cuda")
    assert copy.deepcopy(numbers)[-1].item() == (1 << 18) - 1
    file = io.BytesIO()
    torch.save(numbers, file)
    file.seek(0)
    assert torch.load(file)[-1].item() == (1 << 18) - 1


def test_what_is_saved_can_be_loaded(events: Events, simulation: Simulation, tmp_path: Path) -> None:
    saved = {"ids": torch.arange(1000, device="cuda"), "large": torch.empty(3_000_000, device="cuda")}
    simulation.unknowns.reset()
    path = tmp_path / "saved.pt"
    assert events(lambda: torch.save(saved, path)) == []
    assert path.stat().st_size > 12_000_000
    assert simulation.unknowns.doubt() is None  # nobody went by what is not known
    assert len(simulation.unknowns.let_go) == 1
    loaded: list[dict[str, torch.Tensor]] = []
    assert events(lambda: loaded.append(torch.load(path))) == [8000, 12_000_000]
    assert torch.equal(loaded[0]["ids"], saved["ids"])
    assert torch.load(path, map_location="cpu")["ids"].tolist() == list(range(1000))
    file = io.BytesIO()
    torch.save(torch.arange(5), file)
    file.seek(0)
    assert torch.load(file, map_location="cuda").tolist() == list(range(5))


def test_copies_between_card_and_cpu(simulation: Simulation) -> None:
    simulation.unknowns.reset()
    there = Storage(3, device="cuda").copy_(Storage([1, 2, 3]))
    assert Storage(3).copy_(there).tolist() == there.cuda().tolist() == [1, 2, 3]
    with pytest.raises(RuntimeError, match="size does not match, self was 4 bytes but src was 3 bytes"):
        Storage(4).copy_(there)
    unknown = torch.empty(1000, device="cuda").untyped_storage()
    there = Storage(unknown.nbytes(), device="cuda").fill_(1)
    there.copy_(unknown)
    assert simulation.unknowns.doubt() is None
    assert there[0] == 0
    assert simulation.unknowns.doubt()
    with pytest.raises(RuntimeError, match="meta"):
        there.copy_(Storage(unknown.nbytes(), device="meta"))


def test_what_was_not_known_is_not_known_from_a_copy(simulation: Simulation) -> None:
    simulation.unknowns.reset()
    numbers = torch.randn(1000, 1000, device="cuda")
    copied = copy.deepcopy(numbers)[:2, :2].clone()
    assert simulation.unknowns.doubt() is None
    bool(copied.sum() > 0)
    assert simulation.unknowns.doubt()


def test_each_is_on_its_own_card(simulation: Simulation) -> None:
    with simulation.other_cards(cards_of("2xt4")):
        storage = Storage(1 << 20, device="cuda:1")
        assert torch.cuda.current_device() == 0
        storage.resize_(3 << 20)
        assert (torch.cuda.memory_allocated(0), torch.cuda.memory_allocated(1)) == (0, 3 << 20)
        moved = storage.to(device=torch.device("cuda", 0))
        assert (torch.cuda.memory_allocated(0), moved.device.index) == (3 << 20, 0)
        storage.resize_(0)
        assert storage.device.index == 1
        with torch.cuda.device(1):
            assert Storage(8, device="cuda").device.index == 1
        del storage, moved


def test_the_cpu_has_its_own(events: Events) -> None:
    assert events(lambda: Storage(100).resize_(200)) == []
    assert Storage([1, 2]).tolist() == [1, 2]
    assert Storage(5, device="meta").nbytes() == 5
    with pytest.raises(RuntimeError, match="only one or neither"):
        Storage(5, allocator=1, device="cuda")


def test_without_the_card_it_dies_and_torch_is_as_it_was(simulation: Simulation) -> None:
    storage = Storage(1000, device="cuda")
    numbers = torch.arange(10, device="cuda")
    allocator = simulation.allocator(0)
    held = allocator.allocated
    simulation.off()
    assert not {"__new__", "copy_", "resize_"} & set(vars(Storage))
    assert Storage(3).nbytes() == 3
    if torch.version.cuda is None:
        with pytest.raises(RuntimeError, match="not recognized"):
            Storage(3, device="cuda")
        with pytest.raises(RuntimeError, match="built without"):
            storage.resize_(3)
    assert allocator.allocated == held
    del storage
    assert allocator.allocated == held - 1024
    del numbers
    assert allocator.allocated == held - 1024 - 512
