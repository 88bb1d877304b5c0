"""Sizes that were worked out from shapes, against models that transformers and bitsandbytes really made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_memleak.budget.model_sizes import sizes_of
from pytest_memleak.errors import BadInput, Inconclusive

pytest.importorskip("transformers")

Tiny = Callable[..., Any]
Load = Callable[..., Any]

families = pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
ties = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
bitness = pytest.mark.parametrize(("bits", "name"), [(4, "nf4_size"), (8, "int8_size")])


def bytes_of(source: object, name: str) -> int:
    return sizes_of(source).term(name).bytes


@families
@ties
@bitness
def test_the_prediction_agrees_to_the_byte_with_what_bitsandbytes_makes(
    family: str, tied: bool, bits: int, name: str, tiny: Tiny, load: Load, tmp_path: Path
) -> None:
    plain = tiny(family, tied=tied)
    plain.save_pretrained(tmp_path)
    quantized = load(str(tmp_path), bits=bits)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in quantized.buffers())
    really = bytes_of(quantized, "final_size") - buffers
    assert bytes_of(plain, name) == bytes_of(str(tmp_path), name) == bytes_of(quantized, name) == really
    # The model still says what it was.
    was = 2 * sum(parameter.numel() for parameter in plain.parameters())
    assert bytes_of(quantized, "fp16_size") == was


@families
@ties
def test_model_config_and_folder_say_the_same(family: str, tied: bool, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny(family, tied=tied)
    model.save_pretrained(tmp_path)
    for name in ("fp32_size", "fp16_size", "bf16_size", "int8_size", "nf4_size", "largest_param"):
        expected = bytes_of(model, name)
        assert expected == bytes_of(tmp_path, name) == bytes_of(tmp_path / "config.json", name)
        assert expected == bytes_of(model.config, name)


def test_a_quantized_model_that_has_run_is_still_the_same(load: Load, checkpoint: str) -> None:
    import torch

    model = load(checkpoint, bits=8)
    before = sizes_of(model)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    # The 8-bit scales have moved from the parameters to their modules.
    assert sizes_of(model).terms == before.terms


def test_a_checkpoint_that_is_quantized_itself_says_what_it_was(
    load: Load, checkpoint: str, tiny: Tiny, tmp_path: Path
) -> None:
    load(checkpoint, bits=4).save_pretrained(tmp_path / "four")
    assert bytes_of(tmp_path / "four", "fp16_size") == bytes_of(checkpoint, "fp16_size")
    assert bytes_of(load(str(tmp_path / "four"), device_map={"": "cpu"}), "fp16_size") == bytes_of(tiny(), "fp16_size")


def test_shards_of_a_real_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny(tied=False)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert bytes_of(tmp_path, "fp16_size") == bytes_of(model, "fp16_size")
    next(iter(sorted(tmp_path.glob("*.safetensors")))).unlink()
    with pytest.raises(BadInput, match="not there: model-00001"):
        sizes_of(tmp_path)


def test_the_largest_parameter_is_at_the_checkpoints_dtype(tiny: Tiny, tmp_path: Path) -> None:
    import torch

    tiny().to(torch.bfloat16).save_pretrained(tmp_path)
    term = sizes_of(tmp_path).term("largest_param")
    assert term.bytes == 1000 * 64 * 2
    assert "embed_tokens.weight" in term.meaning
    assert "BF16 in the checkpoint" in term.meaning


def test_modules_that_stay_in_fp32_are_named_as_an_approximation(transformers: Any) -> None:
    config = transformers.T5Config(vocab_size=100, d_model=64, d_ff=128, num_layers=1, num_heads=4, d_kv=16)
    model = transformers.T5ForConditionalGeneration(config)
    # One feed-forward output in the encoder, one in the decoder.
    assert f"{2 * 64 * 128:,} of them stay in fp32" in sizes_of(model).term("nf4_size").meaning


def test_a_config_without_an_architecture_is_not_guessed_at(transformers: Any) -> None:
    with pytest.raises(BadInput, match="LlamaConfig names no architecture"):
        sizes_of(transformers.LlamaConfig())


def test_an_architecture_of_another_release_is_refused(transformers: Any) -> None:
    with pytest.raises(BadInput, match="has no NoSuchModel"):
        sizes_of(transformers.LlamaConfig(architectures=["NoSuchModel"]))


def test_describing_a_config_takes_no_memory_and_leaves_the_default_dtype(transformers: Any) -> None:
    import torch

    large = transformers.LlamaConfig(
        hidden_size=16384, intermediate_size=53248, num_hidden_layers=2, architectures=["LlamaForCausalLM"]
    )
    assert bytes_of(large, "fp16_size") > 4 * 1024**3
    assert torch.get_default_dtype() == torch.float32


def test_a_hub_id_is_found_in_the_local_cache(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    commit = "0" * 40
    repository = tmp_path / "models--some--llama"
    tiny().save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert bytes_of("some/llama", "fp16_size") == bytes_of(tiny(), "fp16_size")


def test_another_quantizer_is_inconclusive(tiny: Tiny) -> None:
    model = tiny()
    model.config.quantization_config = {"quant_method": "gptq"}
    model.hf_quantizer = object()
    with pytest.raises(Inconclusive, match="is quantized by gptq"):
        sizes_of(model).term("fp16_size")
