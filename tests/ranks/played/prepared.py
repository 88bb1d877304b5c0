"""transformers' load and accelerate's own prepare on ranks that are played: FSDP2 with cpu_ram_efficient_loading."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM, LlamaConfig

from pytest_memleak.ranks.host import HostFigures
from pytest_memleak.ranks.played import playing
from pytest_memleak.upstream.checkpoints import make_checkpoint

RANKS = 4
BF16 = 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=4096,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=4096,
    )
    return make_checkpoint(config, tmp_path_factory.mktemp("llama"), sparse=True, tokenizer=False)


@pytest.fixture(autouse=True)
def told_of_fsdp(monkeypatch: pytest.MonkeyPatch, four_cards: Any) -> Any:
    for name, value in {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
        "FSDP_VERSION": "2",
    }.items():
        monkeypatch.setenv(name, value)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    gc.collect()


def accelerator(mixed_precision: str) -> Accelerator:
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        cpu_ram_efficient_loading=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        reshard_after_forward=True,
    )
    return Accelerator(fsdp_plugin=plugin, mixed_precision=mixed_precision)


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
@pytest.mark.parametrize("rank", [0, 3])
def test_a_rank_loads_prepares_and_trains(rank: int, mixed_precision: str, checkpoint: Path, four_cards: Any) -> None:
    before = torch.cuda.memory_allocated(rank)  # what an earlier test's model may have left
    with playing(rank, RANKS) as played:
        made = accelerator(mixed_precision)
        assert (made.num_processes, made.process_index, made.device.type) == (RANKS, rank, "cuda")
        assert made.is_main_process == (rank == 0)
        start = played.host.now()
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
        size = BF16 * sum(one.numel() for one in model.parameters())
        loaded, _ = _growth(played.host.take(), start)
        if rank == 0:
            assert loaded.mapped == size
        assert loaded.committed < 0.01 * size
        optimizer = torch.optim.AdamW(model.parameters())
        model, optimizer = made.prepare(model, optimizer)
        _, peak = _growth(played.host.take(), start)
        # With mixed precision accelerate makes floats of all weights before they go to the meta device, on every rank.
        floats = 2 * size if mixed_precision == "bf16" else 0
        assert floats <= peak.committed < floats + 0.01 * size
        share = (2 if mixed_precision == "bf16" else 1) * size / RANKS
        held = torch.cuda.memory_allocated() - before
        assert share <= held < 1.1 * share
        ids = torch.zeros(1, 16, dtype=torch.long, device=made.device)
        loss = model(input_ids=ids, labels=ids).loss
        made.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        assert 3 * share <= torch.cuda.memory_allocated() - before
        assert four_cards.unknowns.doubt() is None


def _growth(read: tuple[HostFigures, HostFigures], start: HostFigures) -> tuple[HostFigures, HostFigures]:
    return read[0] - start, read[1] - start
