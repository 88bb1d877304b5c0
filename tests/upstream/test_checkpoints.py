"""Checkpoints made from configs, against those that transformers saves, and loaded by it."""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
from pathlib import Path
from typing import Any

import pytest

from pytest_memleak.budget.checkpoint import read_checkpoint
from pytest_memleak.errors import BadInput
from pytest_memleak.upstream.checkpoints import MOST_IN_A_SHARD, make_checkpoint

_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}

# Older loads do not know dtype.
pytest.importorskip("transformers", minversion="4.56")


def config_of(family: str, transformers: Any) -> Any:
    if family == "gpt2":
        return transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=300)
    if family == "mixtral":
        return transformers.MixtralConfig(**_SMALL, num_local_experts=4)
    if family == "classifier":
        sizes = {name: size for name, size in _SMALL.items() if name != "num_key_value_heads"}
        return transformers.BertConfig(**sizes, architectures=["BertForSequenceClassification"])
    return transformers.LlamaConfig(**_SMALL, tie_word_embeddings=family == "tied")


def disk(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.iterdir())


def contents(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.parametrize("sparse", [False, True], ids=["random", "sparse"])
@pytest.mark.parametrize("family", ["llama", "tied", "gpt2", "mixtral", "classifier"])
def test_has_what_transformers_would_have_saved(family: str, sparse: bool, transformers: Any, tmp_path: Path) -> None:
    import torch

    config = config_of(family, transformers)
    folder = make_checkpoint(config, tmp_path / "made", dtype="float16", sparse=sparse)
    (architecture,) = transformers.AutoConfig.from_pretrained(folder).architectures
    model, told = getattr(transformers, architecture).from_pretrained(
        folder, output_loading_info=True, dtype=torch.float16
    )
    assert not any(told.values()), "every tensor is there, and no other"
    fresh = getattr(transformers, architecture)(config).to(torch.float16)
    fresh.save_pretrained(tmp_path / "saved")
    assert read_checkpoint(folder) == read_checkpoint(tmp_path / "saved")
    assert any(weight.any() for weight in model.parameters()) != sparse


def test_is_the_same_in_every_run_and_leaves_the_config_and_the_randomness_alone(
    transformers: Any, tmp_path: Path
) -> None:
    import torch

    config = config_of("llama", transformers)
    before, state = config.to_json_string(), torch.get_rng_state()
    first = make_checkpoint(config, tmp_path / "first")
    torch.rand(3)
    second = make_checkpoint(config, tmp_path / "second")
    torch.set_rng_state(state)
    assert contents(first) == contents(second)
    assert config.to_json_string() == before


def test_a_large_one_takes_no_disk_and_has_shards_that_can_be_mapped(transformers: Any, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(hidden_size=8192, intermediate_size=28672, num_hidden_layers=10, vocab_size=32000)
    folder = make_checkpoint(config, tmp_path, sparse=True)
    shards = sorted(folder.glob("*.safetensors"))
    sizes = [shard.stat().st_size for shard in shards]
    assert sum(sizes) > 19e9
    assert len(sizes) == 5
    assert max(sizes) < MOST_IN_A_SHARD + 100_000
    assert disk(folder) < 200_000
    assert shards[0].name == "model-00001-of-00005.safetensors"


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system is not told how a file will be read")
def test_what_a_loader_looks_at_is_in_memory_and_little_else_gets_there(transformers: Any, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(hidden_size=2048, intermediate_size=8192, num_hidden_layers=4, vocab_size=32000)
    (file,) = make_checkpoint(config, tmp_path, sparse=True).glob("*.safetensors")
    tensors = len(read_checkpoint(file))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, mmap.MAP_PRIVATE) as pages:
        length = 8 + int.from_bytes(pages[:8], "little")
        header = json.loads(pages[8:length])
        begins = [length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"]
        before = resident(pages)
        assert {pages[begin] for begin in begins} == {0}
        assert len(begins) == tensors
        assert resident(pages) == before < 4 * tensors, "nothing was read ahead"


def resident(pages: mmap.mmap) -> int:
    """How many pages of a file the system has in memory."""
    found = (ctypes.c_ubyte * -(-len(pages) // mmap.PAGESIZE))()
    start = ctypes.c_char.from_buffer(pages)
    address = ctypes.c_void_p(ctypes.addressof(start))
    assert ctypes.CDLL(None).mincore(address, ctypes.c_size_t(len(pages)), found) == 0
    del start
    return sum(page & 1 for page in found)


def test_one_tensor_that_is_larger_than_a_shard_has_its_own(
    transformers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_memleak.upstream.checkpoints.MOST_IN_A_SHARD", 30_000)
    folder = make_checkpoint(config_of("llama", transformers), tmp_path)
    assert not transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)[1]["missing_keys"]
    assert all(len(read_checkpoint(shard)) for shard in folder.glob("*.safetensors"))


def test_random_weights_are_those_of_a_model_that_can_learn(transformers: Any, tmp_path: Path) -> None:
    import torch

    folder = make_checkpoint(config_of("classifier", transformers), tmp_path, dtype="bfloat16")
    model = transformers.BertForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    layer = model.bert.encoder.layer[0]
    assert layer.attention.self.query.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(layer.attention.self.query.weight, layer.attention.self.key.weight)
    assert not layer.attention.self.query.bias.any()
    assert layer.output.LayerNorm.weight.eq(1).all()
    ids = torch.tensor([[5, 6, 7]])
    loss = model(ids, labels=torch.tensor([1])).loss
    assert loss.item() == pytest.approx(0.69, abs=0.1)


def test_its_tokenizer_reads_and_writes_text(transformers: Any, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**_SMALL, bos_token_id=1, eos_token_id=[2, 3], pad_token_id=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(make_checkpoint(config, tmp_path))
    text = "def f(x):\n  return ~x"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert max(ids) < config.vocab_size
    assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer("é")["input_ids"] == [tokenizer.unk_token_id]


def test_a_vocabulary_that_is_small_keeps_ids_inside_it(transformers: Any, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**_SMALL | {"vocab_size": 16})
    tokenizer = transformers.AutoTokenizer.from_pretrained(make_checkpoint(config, tmp_path))
    assert max(tokenizer("~ hello").input_ids) < 16


def test_says_what_it_cannot_make(transformers: Any, tmp_path: Path) -> None:
    config = config_of("llama", transformers)
    with pytest.raises(BadInput, match="dtype='int4': a checkpoint can be made in bfloat16, float16, float32"):
        make_checkpoint(config, tmp_path, dtype="int4")
    large = transformers.LlamaConfig()
    with pytest.raises(BadInput, match=r"12\.55 GiB with random weights would fill the disk; sparse=True"):
        make_checkpoint(large, tmp_path / "large")
    assert not (tmp_path / "large").exists()
    config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(BadInput, match="quantized already"):
        make_checkpoint(config, tmp_path)
