"""A mixture of 13 GB in bf16 in 4 bits on a real card: its experts as upstream leaves them, and with the fix."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.conftest import Records

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(
        not find_spec("transformers.core_model_loading"), reason="transformers before 5: no such loader"
    ),
    pytest.mark.skipif(not find_spec("bitsandbytes") or not find_spec("peft"), reason="needs bitsandbytes and peft"),
]

DEVICE = "cuda:0"
LOADS = """
import pytest, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Qwen3MoeConfig

@pytest.fixture
def load(card, checkpoint):
    # Ten of the 48 layers of Qwen3-30B-A3B.
    config = Qwen3MoeConfig(
        vocab_size=151936, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768, num_hidden_layers=10,
        num_attention_heads=32, num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8,
        tie_word_embeddings=False,
    )
    folder = checkpoint(config, dtype="bfloat16", sparse=True)
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16"
    )
    return lambda: AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=four_bits, device_map={"": card.device}
    )

@pytest.mark.max_peak("0.4 * fp16_size")
MARK
def test_load(load):
    load()

@pytest.mark.max_peak("12GiB")
@pytest.mark.gpu_cap("12G")
MARK
def test_three_steps(load, card):
    model = load()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    model = get_peft_model(model, LoraConfig(r=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])).train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad])
    tokens = torch.randint(0, 1000, (1, 512), device=card.device)
    for _ in range(3):
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
"""


@pytest.mark.parametrize("fixed", [False, True], ids=["as it is", "fix"])
def test_experts_in_four_bits(pytester: pytest.Pytester, records: Records, fixed: bool) -> None:
    mark = '@pytest.mark.memleak_fix("moe_experts")' if fixed else ""
    pytester.makepyfile(test_it=LOADS.replace("MARK", mark))
    result = pytester.runpytest_subprocess("--memleak-json=out.json", "--gpu-backend=real", "-p", "no:cacheprovider")
    told = {name: one["results"][0] for name, one in records().items()}
    print({name: (one["check"], one["verdict"], one["measured"]) for name, one in told.items()})
    result.assert_outcomes(**{"passed" if fixed else "failed": 2})


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
def test_a_load_bit_by_bit_as_by_bitsandbytes(tmp_path: Path, nested: bool) -> None:
    """Of thousands of matrices that nobody waits for."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    from pytest_memleak import fixes
    from pytest_memleak.upstream.experts import expert_parameters
    from tests.fixes.moe_models import differences, four_bits, load, qwen3_moe, saved, states

    config = qwen3_moe(num_experts=256, moe_intermediate_size=512, hidden_size=512, num_hidden_layers=4)
    saved(tmp_path, config)
    asked = four_bits(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=nested)
    whole = load(tmp_path, asked, device_map={"": DEVICE})
    for one in expert_parameters(whole):
        replace_parameter_4bit(one.module, one.leaf, compress_statistics=nested, quant_type="nf4")
    with fixes.find("moe_experts").fixed():
        model = load(tmp_path, asked, device_map={"": DEVICE})
    assert len(states(model)) == 8
    assert differences(model, whole) == []


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_packed_bit_by_bit_as_by_bitsandbytes(quant_type: str, nested: bool) -> None:
    from bitsandbytes.functional import quantize_4bit

    from pytest_memleak.fixes._moe_packing import packed
    from pytest_memleak.fixes._moe_settings import Settings

    whole = torch.randn(96, 1536, 512, dtype=torch.bfloat16, device="cuda")
    own, state = quantize_4bit(whole, blocksize=64, compress_statistics=nested, quant_type=quant_type)
    settings = Settings(quant_type, nested=nested, blocksize=64, compute_dtype=None, skipped=())
    for size in (1, 3, 7):
        parts = (whole[start : start + size] for start in range(0, len(whole), size))
        ours = packed(parts, whole.shape, settings)
        assert torch.equal(ours.data, own)
        assert torch.equal(ours.state.absmax, state.absmax)
        assert torch.equal(ours.state.code, state.code)
        if nested:
            assert torch.equal(ours.state.offset, state.offset)
            assert torch.equal(ours.state.state2.absmax, state.state2.absmax)
            assert torch.equal(ours.state.state2.code, state.state2.code)
