"""What operations take on the simulated card, beside their results: rules with figures worked out by hand.

Events are the sizes that the caching allocator is asked for, and with a minus what it gets back.
"""

from __future__ import annotations

import importlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pytest_memleak.cards.simulated.profiles import cards_of
from pytest_memleak.cards.simulated.simulation import Simulation
from tests.cards.simulated.conftest import Events

operations: Any = importlib.import_module("benchmarks.operations")  # as loose as a script
RECORDED = Path(operations.__file__).parent / "results" / "2026-11-28-operations-h200.json"
BF16 = torch.bfloat16

# Which kernel is the fastest cuDNN finds out on the card.
CHOSEN_BY_CUDNN = {
    "conv2d torch.bfloat16 3x224 14/14",
    "conv2d torch.bfloat16 3x224 7/2",
    "conv2d torch.float32 3x224 14/14",
    "conv2d torch.float32 3x224 16/16",
    "conv2d torch.float32 3x224 7/2",
    "conv2d torch.float32 64x56 3/1",
}


def test_single_operations_take_what_they_took_on_a_card(events: Events) -> None:
    document = json.loads(RECORDED.read_text())
    recorded = document["operations"]
    found = operations.taken(events)
    if operations.bitsandbytes_version() != document["bitsandbytes"]:
        # Its kernels choose in another way from release to release, and not all releases have all of them.
        quantized = {name for name, _ in operations.quantized_operations()}
        recorded = {name: recorded[name] for name in found if name not in quantized}
    differ = {name for name in recorded if found[name] != recorded[name]}
    assert differ == CHOSEN_BY_CUDNN
    for name in differ:
        assert 0.75 < operations.peak(found[name]) / operations.peak(recorded[name]) < 1.01


def test_blocks_that_share_outputs_meet_in_memory(events: Events) -> None:
    numbers = torch.empty(4, 512, 1024, dtype=BF16, device="cuda")
    # 1024 outputs of 2048 inputs each. 4 outputs at once: 32 threads beside and 4 above each other, 512 inputs each.
    # 132 processors with 16 such blocks each are more than the 8 that 1024 outputs need, so that an output gets 32
    # blocks, of 16 inputs a thread: 1024 · 32 floats for each of 128 outputs of a block's row.
    assert events(lambda: numbers.sum((0, 1), keepdim=True)) == [
        2048,
        4 * 1024 * 32 * 128,
        4 * 8,
        -32,
        -16777216,
        -2048,
    ]


def test_a_sum_of_all_is_spread_over_all_processors(events: Events) -> None:
    numbers = torch.empty(2**25, dtype=BF16, device="cuda")
    # 512 threads in a block, so 4 blocks on each of 132 processors; places are pairs of a value and a number.
    assert events(numbers.sum) == [2, 4 * 528, 4, -4, -2112, -2]
    assert events(numbers.amax) == [2, 2 * 528, 4, -4, -1056, -2]
    assert events(numbers.argmax) == [8, 16 * 528, 4, -4, -8448, -8]


def test_a_card_with_fewer_processors_takes_fewer_blocks(simulation: Simulation, events: Events) -> None:
    with simulation.other_cards(cards_of("t4")):
        numbers = torch.empty(2**23, device="cuda")
        assert events(numbers.sum) == [4, 4 * 80, 4, -4, -320, -4]  # 2 blocks on each of 40 processors
        del numbers


def test_rows_that_a_warp_can_sum_take_nothing(events: Events) -> None:
    assert events(lambda: torch.empty(64, 4096, device="cuda").sum(1)) == [64 * 4096 * 4, 256, -64 * 4096 * 4, -256]


def test_what_is_summed_in_another_type_is_converted_first(events: Events) -> None:
    mask = torch.empty(10, 10, dtype=torch.bool, device="cuda")
    assert events(mask.sum) == [8, 800, -800, -8]
    assert events(lambda: mask.cumsum(1)) == [800, 800, -800, -800]


def test_masks_become_places(events: Events) -> None:
    numbers = torch.arange(12.0, device="cuda").view(3, 4)
    mask = numbers > 8
    assert numbers[mask].tolist() == [9.0, 10.0, 11.0]
    numbers[mask] = 0
    assert numbers.sum().item() == 36
    numbers[numbers[:, 0] > 3] = torch.ones(4, device="cuda")
    assert numbers.sum().item() == 14
    places = 3 * 2 * 8
    assert events(lambda: numbers[mask]) == [4, 1, -1, places, 1023, -1023, -4, 12, -places, -12]


def test_gradients_of_many_look_ups_are_summed_in_parts(events: Events) -> None:
    weight = torch.empty(100, 64, dtype=BF16, device="cuda", requires_grad=True)
    found = F.embedding(torch.zeros(4000, dtype=torch.long, device="cuda"), weight)
    gradient = torch.empty_like(found)
    taken = [size for size in events(lambda: torch.autograd.backward(found, gradient)) if size > 0]
    # Parts of 10 look-ups, and one more for each row that may be among them: floats.
    assert (4000 // 10 + 100) * 64 * 4 in taken
    assert taken[:3] == [4000 * 8] * 3  # in order, whence they came, and their numbers


def test_norms_of_very_many_rows_are_summed_in_two_steps(events: Events) -> None:
    def taken(rows: int) -> list[int]:
        numbers = torch.empty(rows, 64, device="cuda", requires_grad=True)
        weight = torch.empty(64, device="cuda", requires_grad=True)
        found = F.layer_norm(numbers, (64,), weight)
        gradient = torch.empty_like(found)
        return [size for size in events(lambda: torch.autograd.backward(found, gradient)) if size > 0]

    assert taken(65536) == [65536 * 256, 256]
    assert taken(70016)[:3] == [70016 * 256, 256, 70016 // 32 * 256]


def attended(width: int = 64, dtype: torch.dtype = BF16, heads: int = 8, rank: int = 4) -> torch.Tensor:
    query = torch.empty(2, 8, 128, width, dtype=dtype, device="cuda")
    key = torch.empty(2, heads, 128, width, dtype=dtype, device="cuda")
    if rank == 3:
        query, key = query[0], key[0]
    return F.scaled_dot_product_attention(query, key, key, enable_gqa=heads != 8)


CUDNN, FLASH = 256, 16  # what only their forward passes take: a workspace, and the state of random numbers
SCORES = 2 * 8 * 128 * 128


@pytest.mark.parametrize(
    ("card", "wanted", "other"),
    [("h200", CUDNN, FLASH), ("a100-80g", FLASH, CUDNN), ("rtx3090", FLASH, CUDNN)],
)
def test_attention_is_the_card_s(simulation: Simulation, events: Events, card: str, wanted: int, other: int) -> None:
    with simulation.other_cards(cards_of(card)):
        for taken in (events(attended), events(lambda: attended(heads=2))):
            assert wanted in taken
            assert other not in taken


def test_single_precision_of_fewer_key_heads_is_written_out(simulation: Simulation, events: Events) -> None:
    assert SCORES * 4 not in events(lambda: attended(dtype=torch.float32))
    assert SCORES * 4 in events(lambda: attended(dtype=torch.float32, heads=2))


def test_attention_without_a_batch_is_written_out(events: Events) -> None:
    assert SCORES in events(lambda: attended(rank=3))  # half as many, of two bytes


@pytest.mark.parametrize(("width", "fused"), [(256, True), (264, False)])
def test_how_wide_heads_may_be(events: Events, width: int, fused: bool) -> None:
    assert (CUDNN in events(lambda: attended(width=width))) == fused


def test_a_program_chooses_its_attention(events: Events) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        assert SCORES * 4 in events(attended)  # it reckons in floats
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert FLASH in events(attended)
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION], set_priority=True):
        assert CUDNN not in events(attended)
    with pytest.raises(RuntimeError, match="No available kernel"), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        attended(dtype=torch.float32)
    assert CUDNN in events(attended)


def test_the_order_of_kernels_is_as_before_when_the_card_is_off(simulation: Simulation) -> None:
    simulation.off()
    before = torch._C._get_sdp_priority_order()
    simulation.on()
    attended()
    assert torch._C._get_sdp_priority_order() != before
    simulation.off()
    assert torch._C._get_sdp_priority_order() == before


def test_grouped_products_go_by_no_value(simulation: Simulation) -> None:
    for card in ("h200", "a100-80g"):
        with simulation.other_cards(cards_of(card)):
            ends = torch.randint(0, 10_000, (400_000,), dtype=torch.int32, device="cuda")[:4]  # not known
            numbers = torch.empty(256, 512, dtype=BF16, device="cuda")
            found = torch._grouped_mm(numbers, torch.empty(4, 512, 1024, dtype=BF16, device="cuda"), offs=ends)
            assert found.shape == (256, 1024)
            assert simulation.unknowns.doubt() is None
            del ends, numbers, found


def test_convolutions_copy_what_does_not_lie_with_channels_last(simulation: Simulation, events: Events) -> None:
    numbers = torch.empty(2, 64, 56, 56, dtype=BF16, device="cuda")
    weight = torch.empty(128, 64, 3, 3, dtype=BF16, device="cuda")
    result = 2 * 128 * 54 * 54 * 2
    copies = numbers.nbytes + weight.nbytes + result + 16
    assert events(lambda: F.conv2d(numbers, weight)) == [result, copies, -copies, -result]
    assert events(lambda: F.conv2d(numbers.to(memory_format=torch.channels_last), weight))[1:2] == [result]


@pytest.mark.parametrize("name", ["mse_loss", "smooth_l1_loss"])
def test_losses_are_there_twice_while_they_are_summed_up(name: str, events: Events) -> None:
    """The result was made for all of them, and keeps that memory."""
    given, wanted = (torch.empty(64, 1024, device="cuda") for _ in range(2))
    each = 64 * 1024 * 4
    for reduction, taken in (("none", [each]), ("mean", [each, each, -each]), ("sum", [each, each, -each])):
        found = events(partial(getattr(F, name), given, wanted, reduction=reduction))
        assert [size for size in found if abs(size) == each] == [*taken, -each], reduction


def test_a_sum_over_losses_of_shapes_that_are_stretched(events: Events) -> None:
    column, row = torch.empty(512, 1, device="cuda"), torch.empty(1, 512, device="cuda")
    each = 512 * 512 * 4
    with pytest.warns(UserWarning, match="broadcasting"):
        found = events(lambda: F.huber_loss(column, row))
    assert [size for size in found if abs(size) == each] == [each, -each]
    with pytest.warns(UserWarning, match="broadcasting"):
        found = events(lambda: F.mse_loss(column, row))
    assert [size for size in found if abs(size) == each] == [each, each, -each, -each]
