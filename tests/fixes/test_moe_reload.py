"""Experts in 4 bits are saved as they are, and loaded so again under the fix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes.nn.parametrize")
pytest.importorskip("transformers.core_model_loading")

from safetensors.torch import save_file

from pytest_memleak.errors import BadInput
from pytest_memleak.fixes._moe_reload import Stored, keep_together, packed_in
from pytest_memleak.fixes.moe_experts import FIX, quantize_experts
from pytest_memleak.upstream.experts import expert_parameters
from tests.fixes.moe_models import (
    CONFIGS,
    differences,
    four_bits,
    llama4,
    load,
    qwen3_moe,
    saved,
    states,
    tells_of_another_shape,
)

Log = pytest.LogCaptureFixture


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_same_bytes(tmp_path: Path, config: Callable[..., Any], nested: bool, caplog: Log) -> None:
    saved(tmp_path / "plain", config())
    with FIX.fixed():
        model = load(tmp_path / "plain", four_bits(bnb_4bit_use_double_quant=nested, bnb_4bit_quant_type="nf4"))
        model.save_pretrained(tmp_path / "packed")
        caplog.clear()
        again, info = load(tmp_path / "packed", output_loading_info=True)
    assert differences(model, again) == []
    assert states(model).keys() == states(again).keys()
    assert not any(info.values()), info
    assert f"{len(states(model))} expert tensors in 4 bits, as they were stored" in caplog.text
    for name, state in states(model).items():
        other = states(again)[name]
        assert (state.dtype, state.shape, state.blocksize) == (other.dtype, other.shape, other.blocksize)


def test_what_was_quantized_after_the_load(tmp_path: Path) -> None:
    saved(tmp_path / "plain", qwen3_moe())
    model = load(tmp_path / "plain", four_bits())
    quantize_experts(model)
    model.save_pretrained(tmp_path / "packed")
    with FIX.fixed():
        again = load(tmp_path / "packed")
    assert differences(model, again) == []


@pytest.mark.parametrize("targets", [["q_proj"], []], ids=["attention", "experts"])
def test_what_was_quantized_with_an_adapter_on_it(tmp_path: Path, targets: list[str]) -> None:
    """PEFT's model is not the one that was loaded, and the experts have other names in it."""
    peft = pytest.importorskip("peft", "0.17")
    saved(tmp_path / "plain", qwen3_moe())
    of_experts = None if targets else ["experts.down_proj"]
    with FIX.fixed():
        model = load(tmp_path / "plain", four_bits(llm_int8_skip_modules=["experts", "lm_head"]))
        attached = peft.get_peft_model(
            model, peft.LoraConfig(r=2, target_modules=targets, target_parameters=of_experts)
        )
        assert len(quantize_experts(attached, four_bits()).names) == 4
        model = attached.unload()
        model.save_pretrained(tmp_path / "packed")
        assert differences(model, load(tmp_path / "packed")) == []


def test_a_model_that_upstream_gives_other_experts_for_a_quantized_checkpoint(tmp_path: Path) -> None:
    """A linear layer for each matrix, in which what is packed has no place."""
    saved(tmp_path / "plain", llama4())
    with FIX.fixed():
        model = load(tmp_path / "plain", four_bits(bnb_4bit_use_double_quant=True))
        model.save_pretrained(tmp_path / "packed")
        again = load(tmp_path / "packed")
    assert len(states(again)) == 4
    assert differences(model, again) == []


def test_in_several_files(tmp_path: Path) -> None:
    saved(tmp_path / "plain", qwen3_moe())
    with FIX.fixed():
        model = load(tmp_path / "plain", four_bits())
        model.save_pretrained(tmp_path / "packed", max_shard_size="20KB")
        assert len(list((tmp_path / "packed").glob("*.safetensors"))) > 2
        assert differences(model, load(tmp_path / "packed")) == []


def test_some_experts_stay_as_they_are(tmp_path: Path, caplog: Log) -> None:
    saved(tmp_path / "plain", qwen3_moe())
    with FIX.fixed():
        model = load(tmp_path / "plain", four_bits(llm_int8_skip_modules=["down_proj", "lm_head"]))
        model.save_pretrained(tmp_path / "packed")
        caplog.clear()
        again = load(tmp_path / "packed")
    assert differences(model, again) == []
    assert [one.leaf for one in expert_parameters(again)] == ["down_proj", "down_proj"]
    assert "2 stay as they are, because the checkpoint, which was quantized before, has them so" in caplog.text


def test_a_checkpoint_that_was_quantized_without_the_fix(tmp_path: Path, caplog: Log) -> None:
    """Its experts are at full precision. They can be quantized after the load."""
    saved(tmp_path / "plain", qwen3_moe())
    plain = load(tmp_path / "plain", four_bits())
    plain.save_pretrained(tmp_path / "bits")
    with FIX.fixed():
        model = load(tmp_path / "bits")
    assert differences(model, plain) == []
    assert "4 stay as they are, because the checkpoint, which was quantized before, has them so" in caplog.text
    assert len(quantize_experts(model).names) == 4


@pytest.mark.skipif(not tells_of_another_shape(), reason="this release takes what comes, and computes nonsense")
def test_without_the_fix_upstream_tells_of_another_shape(tmp_path: Path) -> None:
    saved(tmp_path / "plain", qwen3_moe())
    with FIX.fixed():
        load(tmp_path / "plain", four_bits()).save_pretrained(tmp_path / "packed")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(tmp_path / "packed")


def test_packed_experts_that_a_model_has_no_place_for(tmp_path: Path) -> None:
    saved(tmp_path / "plain", qwen3_moe())
    with FIX.fixed():
        load(tmp_path / "plain", four_bits()).save_pretrained(tmp_path / "packed")
        fewer = qwen3_moe(num_hidden_layers=1)
        fewer.quantization_config = four_bits()
        fewer.architectures = ["Qwen3MoeForCausalLM"]
        fewer.save_pretrained(tmp_path / "packed")
        with pytest.raises(BadInput, match=r"2 expert tensors in 4 bits that this model has no expert parameter for"):
            load(tmp_path / "packed")


def test_layers_of_a_dense_model_are_none_of_it(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, vocab_size=128
    )
    saved(tmp_path / "plain", config)
    with FIX.fixed():
        model = load(tmp_path / "plain", four_bits(bnb_4bit_use_double_quant=True))
        model.save_pretrained(tmp_path / "bits")
        assert differences(model, load(tmp_path / "bits")) == []


def test_what_undoes_a_layer_may_be_cut_off() -> None:
    """By upstream, as it saves a layer in two parts. It is none of the experts, and no reason to end a load."""
    whole = torch.tensor(list(b'{"shape": [4, 8, 8]}'), dtype=torch.uint8)
    states = {f"{name}.quant_state.bitsandbytes__nf4": one for name, one in (("a", whole), ("b", whole[:9]))}
    assert set(Stored(states).names) == {"a"}


def test_saving_takes_apart_what_is_no_experts() -> None:
    def conversion(*targets: str) -> Any:
        return SimpleNamespace(operations=[], target_patterns=list(targets))

    renaming = SimpleNamespace(target_patterns=["experts.gate_up_proj"])
    attention, experts = conversion("attn.q", "attn.k"), conversion(r"layers.\1.experts.gate_up_proj")
    model: Any = torch.nn.Module()
    model._weight_conversions = [renaming, attention, experts]
    keep_together(model, ["model.layers.0.experts.gate_up_proj"])
    assert model._weight_conversions == [renaming, attention]


def test_which_experts_files_have_packed(tmp_path: Path) -> None:
    """Of two in one layer that are called alike, the one that is; and what no file of tensors says is not known."""
    block = torch.nn.ModuleDict({name: torch.nn.Module() for name in ("experts", "shared_experts")})
    for module in block.values():
        module.register_parameter("down_proj", torch.nn.Parameter(torch.zeros(2, 4, 8)))
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([block])})
    state = "language_model.layers.0.shared_experts.down_proj.quant_state.bitsandbytes__nf4"
    save_file({state: torch.zeros(2, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    files = [str(tmp_path / name) for name in ("model.safetensors", "pytorch_model.bin")]
    assert packed_in(files, model) == {"layers.0.shared_experts.down_proj"}
    assert packed_in(files[1:], model) == set()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_upstream_is_told_what_experts_are_going_to_take(
    tmp_path: Path, config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks for the bytes of each parameter, to choose devices and to warm an allocator up."""
    from transformers import modeling_utils

    told: dict[str, float] = {}

    def asks(model: Any, *others: Any) -> None:
        quantizer = others[-1]
        for name, one in model.named_parameters():
            if one.dim() == 3:
                told[name] = quantizer.param_element_size(model, name, one)

    monkeypatch.setattr(modeling_utils, "caching_allocator_warmup", asks)
    saved(tmp_path / "plain", config())
    asked = four_bits(llm_int8_skip_modules=["model.layers.1", "lm_head"])
    with FIX.fixed():
        load(tmp_path / "plain", asked).save_pretrained(tmp_path / "packed")
        of_the_first = dict(told)
        told.clear()
        load(tmp_path / "packed")
    assert of_the_first == told
    assert {(name.split(".")[2], size) for name, size in told.items()} == {("0", 0.5), ("1", 2)}
    load(tmp_path / "plain", four_bits())
    assert set(told.values()) == {2}
