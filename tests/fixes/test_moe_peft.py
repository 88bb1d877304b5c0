"""LoRA on experts that bitsandbytes quantized: what it is attached to, and that all of it is trained."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrize as cache

from pytest_memleak.errors import BadInput
from pytest_memleak.fixes import _moe_peft, parametrize_cache

transformers = pytest.importorskip("transformers", minversion="5.0")
peft = pytest.importorskip("peft", minversion="0.20")
quantizing = pytest.importorskip("bitsandbytes.nn.parametrize")

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
FULL = [f"model.layers.{layer}.{name}" for layer in range(2) for name in EXPERTS]
ATTENTION: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}
TOKENS = torch.arange(32).reshape(2, 16)

since_0_21 = pytest.mark.skipif(
    not peft.__version__.startswith("0.21."), reason="what goes wrong without a patch was seen in 0.21"
)


@pytest.fixture(autouse=True)
def cache_is_emptied() -> Iterator[None]:
    """Before bitsandbytes 0.50, checkpointing leaves it switched on: another bug."""
    with parametrize_cache.FIX.fixed():
        yield


def built(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=64,
    )
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)


def experts_of(model: Any) -> list[tuple[Any, str]]:
    own = [(one, name, value) for one in model.modules() for name, value in one.named_parameters(recurse=False)]
    return [(one, name) for one, name, value in own if value.ndim == 3]


def quantized(model: Any = None) -> Any:
    model = built() if model is None else model
    for module, name in experts_of(model):
        quantizing.replace_parameter_4bit(module, name, compress_statistics=True)
    return model


def dequantized() -> Any:
    """The same values as plain parameters."""
    plain = built()
    for (module, name), (source, _) in zip(experts_of(plain), experts_of(built()), strict=True):
        quantizing.replace_parameter_4bit(source, name, compress_statistics=True)
        getattr(module, name).data.copy_(getattr(source, name))
    return plain


def attached(model: Any, **targets: Any) -> Any:
    torch.manual_seed(1)
    # Both parts at random: zeros would leave one of them without a gradient.
    return peft.get_peft_model(model, peft.LoraConfig(r=4, init_lora_weights=False, **targets)).train()


def step(model: Any) -> float:
    model.zero_grad()
    loss = model(TOKENS, labels=TOKENS).loss
    loss.backward()
    return float(loss.detach())


def parts(model: Any) -> dict[str, torch.Tensor]:
    return {name: one for name, one in model.named_parameters() if "lora_" in name}


def shapes(model: Any) -> dict[str, torch.Size]:
    return {name: one.shape for name, one in parts(model).items()}


def untrained(model: Any) -> set[str]:
    return {name for name, one in parts(model).items() if one.grad is None or not one.grad.any()}


def left_behind(model: Any) -> int:
    """How many parametrizations there are beyond that of each quantized parameter, and what is in the cache."""
    lists = [one for module in model.modules() for one in _moe_peft.quantized_in(module).values()]
    return sum(len(one) for one in lists) - len(lists) + cache._cache_enabled + len(cache._cache)


@contextmanager
def patched(but: str = "") -> Iterator[None]:
    with ExitStack() as undo:
        for patch in _moe_peft.patches_of(peft.tuners.lora.layer):
            if patch.name != but:
                undo.enter_context(patch)
        yield


@pytest.mark.parametrize(
    ("targets", "places"),
    [
        (ATTENTION, 4),
        ({"target_modules": "all-linear"}, None),
        ({"target_modules": ["q_proj", "gate_up_proj", "down_proj"]}, None),
        ({"target_modules": r".*\.(q_proj|down_proj)"}, None),
        ({**ATTENTION, "target_parameters": EXPERTS}, 8),
        ({**ATTENTION, "target_parameters": ["down_proj"]}, 6),
        ({**ATTENTION, "target_parameters": FULL}, 8),
        ({"target_modules": [], "target_parameters": EXPERTS[:1]}, 2),
    ],
    ids=["attention", "all-linear", "names", "pattern", "ends of names", "one of two", "full names", "experts alone"],
)
def test_what_is_attached_is_trained_and_is_what_it_would_be(targets: dict[str, Any], places: int | None) -> None:
    told, told_plain = (peft.LoraConfig(r=4, init_lora_weights=False, **copy.deepcopy(targets)) for _ in range(2))
    with patched():
        model = peft.get_peft_model(quantized(), told).train()
        for _ in range(2):
            step(model)
            assert not untrained(model)
            assert not left_behind(model)
        plain = peft.get_peft_model(dequantized(), told_plain)
    assert shapes(model) == shapes(plain)
    assert vars(told) == vars(told_plain), "PEFT itself may rewrite a config; nothing is done to it besides"
    assert places is None or sum("lora_B" in name for name in parts(model)) == places


@pytest.mark.parametrize("reentrant", [None, False, True], ids=["plain", "non-reentrant", "reentrant"])
def test_gradients_are_those_of_the_same_values_unquantized(reentrant: bool | None) -> None:
    with patched():
        models = [attached(model, **ATTENTION, target_parameters=EXPERTS) for model in (quantized(), dequantized())]
        found, plain = map(parts, models)
        for name, one in found.items():
            plain[name].data.copy_(one)
        for model in models:
            if reentrant is not None:
                model.enable_input_require_grads()
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            step(model)
        first, second = map(step, models)
    assert first == pytest.approx(second, rel=1e-6)
    for name, one in found.items():
        torch.testing.assert_close(one.grad, plain[name].grad)


def test_what_is_not_quantized_beside_what_is() -> None:
    model = built()
    for module, name in experts_of(model):
        if name == "down_proj":
            quantizing.replace_parameter_4bit(module, name, compress_statistics=True)
    with patched():
        adapted = attached(model, **ATTENTION, target_parameters=EXPERTS)
        step(adapted)
        assert not untrained(adapted)
        assert not left_behind(adapted)
    # Not which one lies in the other: nothing says where a packed parameter stood among those that are not.
    assert set(parts(adapted)) == set(parts(attached(built(), **ATTENTION, target_parameters=EXPERTS)))


@since_0_21
class TestWithoutOneOfThem:
    def test_ends_of_names_match_nothing(self) -> None:
        with patched(but="_inject_parameters"), pytest.warns(RuntimeWarning, match="no parameter was matched"):
            attached(quantized(), **ATTENTION, target_parameters=EXPERTS)

    @pytest.mark.parametrize("but", ["_check_target_module_exists", "inject_adapter"])
    def test_names_of_experts_are_an_error(self, but: str) -> None:
        with patched(but=but), pytest.raises(ValueError, match="Target module ParametrizationList"):
            attached(quantized(), target_modules=["q_proj", "gate_up_proj"])

    def test_the_inner_of_two_has_no_effect(self) -> None:
        with patched(but="_activate_lora"):
            model = attached(quantized(), target_parameters=FULL, target_modules=[])
            step(model)
            assert untrained(model) == {name for name in parts(model) if "base_layer" in name}

    def test_what_was_added_stays_and_the_next_pass_fails(self) -> None:
        with patched(but="_remove_parametrizations"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = attached(quantized(), **ATTENTION, target_parameters=FULL)
            step(model)
            assert left_behind(model) == 4
            with pytest.raises(RuntimeError, match="only Tensors of floating point dtype can require gradients"):
                step(model)


def test_another_adapter_and_none() -> None:
    targets = {**ATTENTION, "target_parameters": EXPERTS}
    with patched():
        base = quantized()
        expected = base(TOKENS).logits.detach()
        model = attached(base, **targets)
        first = model(TOKENS).logits.detach()
        model.add_adapter("other", peft.LoraConfig(r=4, init_lora_weights=False, **targets))
        model.set_adapter("other")
        step(model)
        first_of_all = {name for name in parts(model) if ".default." in name}
        assert {name.replace(".other.", ".default.") for name in set(parts(model)) - first_of_all} == first_of_all
        assert untrained(model) == first_of_all
        assert not torch.equal(model(TOKENS).logits, first)
        model.set_adapter("default")
        torch.testing.assert_close(model(TOKENS).logits, first)
        with model.disable_adapter():
            torch.testing.assert_close(model(TOKENS).logits, expected)
        assert not left_behind(model)


def test_a_block_with_the_cache_on_keeps_no_value_of_a_pass_that_is_over() -> None:
    with patched():
        base = quantized()
        expected = base(TOKENS).logits.detach()
        model = attached(base, target_modules=[], target_parameters=EXPERTS)
        with torch.no_grad(), cache.cached():
            assert not torch.allclose(model(TOKENS).logits, expected)
            with model.disable_adapter():
                torch.testing.assert_close(model(TOKENS).logits, expected)


def test_what_is_saved_can_be_loaded(tmp_path: Path) -> None:
    with patched():
        model = attached(quantized(), **ATTENTION, target_parameters=EXPERTS).eval()
        model.save_pretrained(tmp_path)
        expected = model(TOKENS).logits
        loaded = peft.PeftModel.from_pretrained(quantized(), tmp_path).eval()
        torch.testing.assert_close(loaded(TOKENS).logits, expected)
        for merge in (loaded.merge_adapter, loaded.merge_and_unload):
            with pytest.raises(BadInput, match=r"merged into \w+_proj, which is quantized: save it"):
                merge()
            # Nor is what could be merged: the adapter can still be saved.
            assert peft.get_peft_model_state_dict(loaded).keys() == peft.get_peft_model_state_dict(model).keys()
            torch.testing.assert_close(loaded(TOKENS).logits, expected)
    unquantized = peft.PeftModel.from_pretrained(dequantized(), tmp_path).eval()
    torch.testing.assert_close(unquantized(TOKENS).logits, expected)
    torch.testing.assert_close(unquantized.merge_and_unload()(TOKENS).logits, expected)


def test_a_layer_of_the_same_name_is_still_trained() -> None:
    """Excluded is what a quantized parameter is made of, by its full path, and nothing that is called as it is."""
    config = transformers.Qwen2MoeConfig(
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
    )
    with patched():
        model = attached(quantized(transformers.Qwen2MoeForCausalLM(config)), target_modules=["q_proj", "down_proj"])
        step(model)
        assert any("shared_expert.down_proj.lora_B" in name for name in parts(model))
        assert not untrained(model)


def test_preparing_for_training_leaves_the_experts_alone() -> None:
    model = quantized(built(torch.bfloat16))
    model.is_loaded_in_4bit = True  # as a load in 4 bits says of the rest
    packed = {name: one.data_ptr() for name, one in model.named_parameters() if "original" in name}
    prepared = peft.prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    assert packed == {name: one.data_ptr() for name, one in prepared.named_parameters() if "original" in name}
    assert {one.dtype for name, one in prepared.named_parameters() if "original" in name} == {torch.uint8}
    with patched():
        trained = attached(prepared, **ATTENTION, target_parameters=EXPERTS)
        for _ in range(2):
            step(trained)
        assert not untrained(trained)
        assert not left_behind(trained)


def test_nothing_stays_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = [(patch.owner, patch.name) for patch in _moe_peft.patches_of(peft.tuners.lora.layer)]
    before = [vars(owner)[name] for owner, name in owners]
    with _moe_peft.patches():
        assert all(vars(owner)[name] is not found for (owner, name), found in zip(owners, before, strict=True))
    assert [vars(owner)[name] for owner, name in owners] == before
    monkeypatch.delattr(peft.tuners.lora.layer, "ParamWrapper")  # as before 0.17
    assert not list(_moe_peft.patches_of(peft.tuners.lora.layer))
