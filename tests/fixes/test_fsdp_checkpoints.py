"""Checkpoints of all kinds, loaded by a rank that waits for its weights, with the fix `fsdp_init`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_memleak.cases import fsdp_loads
from pytest_memleak.fixes.fsdp_init import FIX

pytest.importorskip("accelerate")
transformers: Any = pytest.importorskip("transformers")

from tests.fixes.fsdp_waiting import TINY, all_on_meta, saved

modeling: Any = importlib.import_module("transformers.modeling_utils")
fsdp_rank: Any = importlib.import_module("benchmarks.fsdp_rank")  # as loose as a script


@pytest.mark.skipif(transformers.__version__ < "5", reason="before, ranks that wait never read")
@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_a_device_map_is_the_callers_word(waiting: None, tiny: Path, device_map: str) -> None:
    """Nobody sends such a model: a frozen teacher beside the one that is trained."""
    as_it_is = transformers.AutoModelForCausalLM.from_pretrained(tiny, device_map=device_map)
    with FIX.fixed():
        model = transformers.AutoModelForCausalLM.from_pretrained(tiny, device_map=device_map)
    for (name, before), parameter in zip(as_it_is.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(before, parameter), name


def test_a_checkpoint_in_shards(waiting: None, tmp_path: Path) -> None:
    saved(tmp_path, TINY, max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with FIX.fixed():
        assert all_on_meta(fsdp_loads.load(tmp_path))


def test_a_pickled_checkpoint(waiting: None, tiny: Path, tmp_path: Path) -> None:
    torch.save(modeling.load_state_dict(str(tiny / "model.safetensors")), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    with FIX.fixed():
        assert all_on_meta(fsdp_loads.load(tmp_path))


def test_weights_that_are_given(waiting: None, tiny: Path) -> None:
    stored = modeling.load_state_dict(str(tiny / "model.safetensors"))
    config = transformers.AutoConfig.from_pretrained(tiny)
    with FIX.fixed():
        model = transformers.LlamaForCausalLM.from_pretrained(None, config=config, state_dict=stored)
    assert all_on_meta(model)


@pytest.mark.parametrize("stored_twice", [False, True])
def test_what_rank_0_ties_is_tied(
    waiting: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored_twice: bool
) -> None:
    """Weights that are stored twice are tied in some releases, and not in others."""
    saved(tmp_path, TINY, tied=True)
    if stored_twice:
        from safetensors.torch import load_file, save_file

        stored = load_file(tmp_path / "model.safetensors")
        stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
        save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with FIX.fixed():
        model = fsdp_loads.load(tmp_path)
        monkeypatch.setenv("LOCAL_RANK", "0")
        rank_0 = fsdp_loads.load(tmp_path)
    assert all_on_meta(model)
    tied = rank_0.lm_head.weight is rank_0.model.embed_tokens.weight
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert tied or stored_twice


def test_what_the_checkpoint_lacks_waits_too(waiting: None, tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    stored = load_file(tiny / "model.safetensors")
    del stored["lm_head.weight"], stored["model.layers.0.mlp.up_proj.weight"]
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    with FIX.fixed():
        assert all_on_meta(fsdp_loads.load(tmp_path))
