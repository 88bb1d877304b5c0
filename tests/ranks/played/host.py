"""The host's memory of a played rank: what is committed, what is only allocated, and what is mapped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_memleak.ranks.host import HostAccount, HostFigures
from pytest_memleak.ranks.played import playing

GIB = 1 << 30
LARGE = 1 << 20
"""Elements: 4 MiB of floats."""


@pytest.fixture
def host(four_cards: Any) -> Iterator[HostAccount]:
    with playing(1, 4) as played:
        yield played.host


class Growth:
    def __init__(self, host: HostAccount) -> None:
        self._host = host
        self._start = host.now()

    def take(self) -> tuple[HostFigures, HostFigures]:
        now, peak = self._host.take()
        return now - self._start, peak - self._start

    def committed(self) -> int:
        return self.take()[0].committed


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_zeros_are_committed_and_what_is_empty_is_not(host: HostAccount) -> None:
    growth = Growth(host)
    meta = torch.empty(LARGE, device="meta")
    empty = torch.empty_like(meta, device="cpu")
    now, _ = growth.take()
    assert (now.committed, now.allocated) == (0, 4 * LARGE)
    zeros = torch.zeros_like(meta, device="cpu")
    now, _ = growth.take()
    assert (now.committed, now.allocated) == (4 * LARGE, 8 * LARGE)
    empty.fill_(1)
    assert growth.committed() == 8 * LARGE
    del zeros, empty
    now, peak = growth.take()
    assert (now.committed, now.allocated, peak.committed) == (0, 0, 8 * LARGE)


def test_what_is_written_in_part_and_twice(host: HostAccount) -> None:
    growth = Growth(host)
    whole = torch.empty(4, LARGE)
    whole[1].copy_(torch.ones(LARGE))
    whole[1].mul_(2)
    whole[1, : LARGE // 2].zero_()
    assert growth.committed() == 4 * LARGE
    whole[2:].normal_()
    assert growth.committed() == 3 * 4 * LARGE
    whole[0:2].zero_()
    assert growth.committed() == 4 * 4 * LARGE


def test_it_takes_nothing_of_this_machine(host: HostAccount) -> None:
    before, growth = resident(), Growth(host)
    large = [torch.zeros(GIB // 4) for _ in range(40)]
    joined = torch.stack(large[:8]).to(torch.bfloat16)
    now, _ = growth.take()
    assert now.committed == 40 * GIB + joined.nbytes == 44 * GIB
    assert resident() - before < GIB // 4


def test_results_and_what_is_held_in_between(host: HostAccount) -> None:
    growth = Growth(host)
    one = torch.ones(LARGE, dtype=torch.bfloat16)
    two = (one.float() * 2).to(torch.bfloat16)
    now, peak = growth.take()
    assert two.dtype == torch.bfloat16
    assert now.committed == 4 * LARGE
    # The floats, their product, and bfloat16 twice: of the floats one set is gone when the last is made.
    assert 0 <= peak.committed - (2 * LARGE + 4 * LARGE + 4 * LARGE) < 64  # a number is a tensor, too


def test_small_tensors_that_come_between_are_part_of_the_peak(host: HostAccount) -> None:
    growth = Growth(host)
    parts = [torch.ones(LARGE // 4) for _ in range(16)]
    parts = parts[:1]
    _, peak = growth.take()
    assert peak.committed == 16 * LARGE
    torch.zeros(LARGE)
    _, peak = growth.take()
    assert peak.committed == LARGE + 4 * LARGE


def test_files_that_are_mapped(host: HostAccount, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    file = tmp_path / "model.safetensors"
    header = json.dumps({"big": {"dtype": "F32", "shape": [LARGE], "data_offsets": [0, 4 * LARGE]}})
    text = header.encode() + b" " * (-len(header) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + 4 * LARGE)
    growth = Growth(host)
    with safetensors.safe_open(file, "pt") as opened:
        big = opened.get_tensor("big")
    now, _ = growth.take()
    assert (now.mapped, now.committed) == (4 * LARGE, 0)
    halved = big.half()
    now, _ = growth.take()
    assert (now.mapped, now.committed) == (4 * LARGE, 2 * LARGE)
    big[: LARGE // 2].zero_()  # pages of a private map that are written become the process's own
    now, _ = growth.take()
    assert (now.mapped, now.committed) == (4 * LARGE, 4 * LARGE)
    del big, halved
    now, peak = growth.take()
    assert (now.mapped, now.committed, peak.mapped) == (0, 0, 4 * LARGE)


def test_what_is_large_has_no_values(host: HostAccount, four_cards: Any) -> None:
    large = torch.ones(LARGE)
    assert not torch.ops.memleak_card.knows(large)
    assert not torch.ops.memleak_card.knows(large.cuda())
    assert not torch.isnan(large).any()  # which is certain, and decides nothing
    assert four_cards.unknowns.doubt() is None
    assert large.sum().item() == 1.0  # the placeholder
    assert four_cards.unknowns.placeholders.total() == 1
    bool(large[0] > 0)
    assert "went by a value" in str(four_cards.unknowns.doubt())
    small = torch.ones(1000)
    assert torch.ops.memleak_card.knows(small)
    assert small.sum().item() == 1000


def test_from_the_card_and_back(host: HostAccount) -> None:
    growth = Growth(host)
    there = torch.empty(LARGE, device="cuda")
    here = there.cpu()
    assert growth.committed() == here.nbytes == 4 * LARGE


def test_modules_and_copies(host: HostAccount) -> None:
    growth = Growth(host)
    layer = torch.nn.Linear(2048, 2048, bias=False)
    assert growth.committed() == 4 * 2048 * 2048
    layer.to(torch.bfloat16)
    assert growth.committed() == 2 * 2048 * 2048
    layer.to("meta")
    assert growth.committed() == 0


def test_without_a_rank_memory_is_memory(four_cards: Any) -> None:
    with playing(0, 1):
        left = torch.ones(LARGE)
    real = torch.ones(LARGE)
    assert real.sum().item() == LARGE
    assert torch.ops.memleak_card.knows(real)
    del left
