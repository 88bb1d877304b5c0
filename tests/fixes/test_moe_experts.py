"""Loads in 4 bits under the fix: what becomes of the experts, and of loads that it has nothing to do with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
parametrize = pytest.importorskip("bitsandbytes.nn.parametrize")
core_model_loading = pytest.importorskip("transformers.core_model_loading")

from transformers import BitsAndBytesConfig, LlamaConfig, modeling_utils
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from pytest_memleak.fixes.moe_experts import FIX, quantize_experts
from pytest_memleak.upstream.experts import expert_parameters
from tests.fixes.moe_models import CONFIGS, differences, four_bits, load, qwen3_moe, saved, states

Log = pytest.LogCaptureFixture


@pytest.fixture(autouse=True)
def puts_back_what_it_found() -> Iterator[None]:
    places = [
        (modeling_utils, "convert_and_load_state_dict_in_model"),
        (core_model_loading, "spawn_materialize"),
        (core_model_loading.WeightConverter, "convert"),
        (core_model_loading.WeightRenaming, "convert"),
        (modeling_utils.PreTrainedModel, "_initialize_missing_keys"),
        (Bnb4BitHfQuantizer, "preprocess_model"),
        (Bnb4BitHfQuantizer, "param_element_size"),
        (Bnb4BitHfQuantizer, "_convert_model_for_quantization"),
    ]
    before = [getattr(owner, name) for owner, name in places]
    yield
    assert [getattr(owner, name) for owner, name in places] == before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("qwen3_moe"), qwen3_moe())


def by_bitsandbytes(model: Any, quant_type: str = "nf4", nested: bool = False) -> Any:
    """Each expert tensor as a whole."""
    for one in expert_parameters(model):
        parametrize.replace_parameter_4bit(one.module, one.leaf, compress_statistics=nested, quant_type=quant_type)
    return model


def quantized(folder: Path, asked: BitsAndBytesConfig, *, after: bool) -> Any:
    """By the fix while it is loaded, or by the function after it."""
    if not after:
        with FIX.fixed():
            return load(folder, asked)
    model = load(folder, asked)
    quantize_experts(model)
    return model


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_bit_by_bit_what_bitsandbytes_makes_of_whole_tensors(
    tmp_path: Path, config: Callable[..., Any], nested: bool
) -> None:
    saved(tmp_path, config())
    asked = four_bits(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=nested)
    whole = by_bitsandbytes(load(tmp_path, asked), nested=nested)
    with FIX.fixed():
        model = load(tmp_path, asked)
    assert len(states(model)) >= 4
    assert differences(model, whole) == []
    for (name, one), (same, other) in zip(model.named_modules(), whole.named_modules(), strict=True):
        assert name == same
        for kind in ("_forward_pre_hooks", "_forward_hooks", "_state_dict_hooks"):
            assert len(getattr(one, kind)) == len(getattr(other, kind)), name
    for name in states(model):
        path, _, leaf = name.rpartition(".")
        assert torch.equal(getattr(model.get_submodule(path), leaf), getattr(whole.get_submodule(path), leaf)), name


@pytest.mark.parametrize("after", [False, True], ids=["in the load", "after it"])
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_it_does_what_the_config_says(folder: Path, quant_type: str, nested: bool, after: bool) -> None:
    asked = four_bits(bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=nested)
    model = quantized(folder, asked, after=after)
    assert {state.quant_type for state in states(model).values()} == {quant_type}
    assert {state.nested for state in states(model).values()} == {nested}
    assert differences(model, by_bitsandbytes(load(folder, asked), quant_type, nested)) == []


@pytest.mark.parametrize("named", ["experts", "down_proj", "model.layers.1.mlp.experts", "model.layers.1"])
@pytest.mark.parametrize("after", [False, True], ids=["in the load", "after it"])
def test_what_is_not_to_be_converted_is_not(folder: Path, named: str, after: bool, caplog: Log) -> None:
    asked = four_bits(llm_int8_skip_modules=[named, "lm_head"])
    model = quantized(folder, asked, after=after)
    left = {one.name for one in expert_parameters(model)}
    of_all = {one.name for one in expert_parameters(load(folder))}
    expected = {name for name in of_all if named in name}
    assert left == expected
    assert set(states(model)) == of_all - expected
    assert f"{len(expected)} stay as they are, because llm_int8_skip_modules names them" in caplog.text
    assert asked.llm_int8_skip_modules == [named, "lm_head"]


def test_other_loads_are_left_alone(folder: Path, caplog: Log) -> None:
    with FIX.fixed():
        plain = load(folder)
        eight = load(folder, BitsAndBytesConfig(load_in_8bit=True))
    assert differences(plain, load(folder)) == []
    assert states(plain) == states(eight) == {}
    assert len(expert_parameters(eight)) == 4
    assert "moe_experts" not in caplog.text


def test_no_load_asks_for_the_experts_values(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream initializes what was not loaded. Asked for, a packed tensor would be there at its full size."""
    asked: list[object] = []
    forward = parametrize.Bnb4bitParametrization.forward

    def counted(self: Any, quantized: Any) -> Any:
        asked.append(self)
        return forward(self, quantized)

    monkeypatch.setattr(parametrize.Bnb4bitParametrization, "forward", counted)
    with FIX.fixed():
        model = load(folder, four_bits())
    assert asked == []
    assert model.model.layers[0].mlp.experts.down_proj.shape == (4, 64, 32)
    assert len(asked) == 1


def test_upstream_takes_what_was_packed_for_initialized(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or code from a hub would make new values also of the biases beside it, which were loaded."""
    marked: list[bool] = []
    found = modeling_utils.PreTrainedModel.initialize_weights

    def look(self: Any) -> None:
        marked.extend(getattr(one.parameter, "_is_hf_initialized", False) for one in expert_parameters(self))
        found(self)

    monkeypatch.setattr(modeling_utils.PreTrainedModel, "initialize_weights", look)
    with FIX.fixed():
        load(folder, four_bits())
    assert marked == [True] * 4


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_nobody_knows_how_to_read_by_expert_is_put_together_first(
    tmp_path: Path, config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: Log
) -> None:
    from pytest_memleak.fixes import _moe_sources

    saved(tmp_path, config())
    with FIX.fixed():
        by_expert = load(tmp_path, four_bits())
        caplog.clear()
        monkeypatch.setattr(_moe_sources, "pieces", lambda *given: None)
        whole = load(tmp_path, four_bits())
    assert differences(by_expert, whole) == []
    count = len(states(whole))
    assert f"{count} of them a whole tensor at a time, since how the checkpoint has them is not known" in caplog.text


def test_what_was_done_is_told(folder: Path, caplog: Log) -> None:
    with FIX.fixed() as applied:
        load(folder, four_bits(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True))
    assert "WeightConverter.convert" in str(applied)
    (record,) = [one for one in caplog.records if one.name == "pytest_memleak.fixes.moe_experts"]
    assert record.levelno == logging.WARNING
    # 4 experts × (2 × 32 × 64 + 64 × 32) values in two layers, in 2 bytes each.
    assert record.getMessage().startswith(
        "moe_experts: Qwen3MoeForCausalLM: 4 expert tensors in 4 bits (nf4, blocks of 64, nested), 96 KiB → "
    )
    assert "stay" not in record.getMessage()


def test_experts_compute_in_the_type_of_the_load(folder: Path, caplog: Log) -> None:
    """As those of bitsandbytes do: their code multiplies by the hidden state as it comes."""
    with FIX.fixed():
        model = load(folder, four_bits(bnb_4bit_compute_dtype=torch.float32))
    assert {state.dtype for state in states(model).values()} == {torch.bfloat16}
    assert "they compute in bfloat16 and not in float32" in caplog.text
    model(torch.arange(8)[None])


def test_experts_are_stored_as_bytes(folder: Path) -> None:
    """Whatever layers are stored as: so bitsandbytes has parameters."""
    with FIX.fixed():
        model = load(folder, four_bits(bnb_4bit_quant_storage=torch.bfloat16))
    assert model.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    assert model.model.layers[0].mlp.experts.parametrizations.down_proj.original.dtype == torch.uint8


def test_a_cast_on_the_way(folder: Path) -> None:
    with FIX.fixed():
        model = load(folder, four_bits(), torch_dtype=torch.float16)
    assert {state.dtype for state in states(model).values()} == {torch.float16}
    assert differences(model, by_bitsandbytes(load(folder, four_bits(), torch_dtype=torch.float16), "fp4")) == []


def test_a_model_without_experts(tmp_path: Path, caplog: Log) -> None:
    caplog.set_level(logging.INFO, "pytest_memleak.fixes.moe_experts")
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, vocab_size=128
    )
    saved(tmp_path, config)
    with FIX.fixed():
        model = load(tmp_path, four_bits())
    assert "LlamaForCausalLM: it has no experts, and nothing was done" in caplog.text
    caplog.clear()
    outcome = quantize_experts(model)
    assert (outcome.names, outcome.saved) == ([], 0)
    assert "it has no experts, and nothing was done" in str(outcome)
    assert all(one.levelno < logging.WARNING for one in caplog.records if "moe_experts" in one.name)


def test_the_bug_is_upstreams_own(folder: Path) -> None:
    with FIX.bug() as applied:
        assert not applied.patched
        assert states(load(folder, four_bits())) == {}
        with FIX.fixed():
            assert len(states(load(folder, four_bits()))) == 4
