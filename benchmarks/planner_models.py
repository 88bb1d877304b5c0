"""Models that planner_truth.py trains: random weights, and sizes at which what blocks save is much of a step's peak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

HIDDEN = 128
VOCABULARY = 1024
SIDE = 256
"""Of images, in pixels."""

_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_TOWER = {"hidden_size": 128, "intermediate_size": 256}
_LAYERS = {**_TOWER, "num_hidden_layers": 6, "num_attention_heads": 4, "patch_size": 16, "image_size": SIDE}
_QWEN_TOWER = {**_TOWER, "depth": 6, "num_heads": 4, "out_hidden_size": HIDDEN}
_QWEN_TOKENS = {
    "image_token_id": 1000,
    "video_token_id": 1001,
    "vision_start_token_id": 1002,
    "vision_end_token_id": 1003,
}


def _text(blocks: int, **others: Any) -> dict[str, Any]:
    return {**_TEXT, "num_hidden_layers": blocks, **others}


def _rope(*sections: int, **others: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sections), **others}}


def llama(blocks: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_text(blocks)))


def gpt2(blocks: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": HIDDEN, "n_layer": blocks, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes))


def qwen3_moe(blocks: int) -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "mlp_only_layers": [0]}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**_text(blocks, head_dim=32), **experts))


def qwen2_5_vl(blocks: int) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {**_QWEN_TOWER, "patch_size": 14, "fullatt_block_indexes": [1, 3], "window_size": 112}
    text = {**_text(blocks), **_rope(4, 6, 6)}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_QWEN_TOKENS)
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl(blocks: int) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = {**_QWEN_TOWER, "patch_size": 16, "num_position_embeddings": 256, "deepstack_visual_indexes": [1, 2]}
    text = {**_text(blocks, head_dim=32), **_rope(4, 6, 6, mrope_interleaved=True)}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **_QWEN_TOKENS))


def qwen3_5(blocks: int) -> Any:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    vision = {**_QWEN_TOWER, "patch_size": 16, "num_position_embeddings": 256}
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32}
    rope = _rope(4, 2, 2, partial_rotary_factor=0.5, mrope_interleaved=True)
    text = {**_text(blocks, head_dim=32), "linear_value_head_dim": 32, **heads, **rope}
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision, **_QWEN_TOKENS))


def idefics3(blocks: int) -> Any:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    return Idefics3ForConditionalGeneration(Idefics3Config(**_shuffled(blocks)))


def smolvlm(blocks: int) -> Any:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    return SmolVLMForConditionalGeneration(SmolVLMConfig(**_shuffled(blocks)))


def _shuffled(blocks: int) -> dict[str, Any]:
    text = {**_text(blocks), "model_type": "llama"}
    return {"text_config": text, "vision_config": _LAYERS, "scale_factor": 2, "image_token_id": 1000, "pad_token_id": 0}


def gemma3(blocks: int) -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    kinds = ["full_attention" if number % 4 == 3 else "sliding_attention" for number in range(blocks)]
    text = _text(blocks, head_dim=32, sliding_window=128, layer_types=kinds)
    ids = {"image_token_index": 1000, "boi_token_index": 1001, "eoi_token_index": 1002}
    config = Gemma3Config(text_config=text, vision_config=_LAYERS, mm_tokens_per_image=64, **ids)
    model = Gemma3ForConditionalGeneration(config)
    # New ones are all zero, which no gradient gets through.
    projection = next(one for name, one in model.named_parameters() if name.endswith("mm_input_projection_weight"))
    torch.nn.init.normal_(projection)
    return model


MODELS: dict[str, Callable[[int], Any]] = {
    make.__name__: make for make in (llama, gpt2, qwen3_moe, qwen2_5_vl, qwen3_vl, qwen3_5, idefics3, smolvlm, gemma3)
}


def _everything(model: Any) -> Any:
    return model


def _decoder_adapters(model: Any) -> Any:
    """No gradient goes to what is before the blocks."""
    from peft import LoraConfig, get_peft_model

    targets = r"(?!.*(vision|visual)).*\.(q_proj|v_proj|gate_proj|up_proj|down_proj|in_proj_qkv|c_attn|c_fc)"
    return get_peft_model(model, LoraConfig(r=8, target_modules=targets))


def _adapters(model: Any) -> Any:
    """In towers, too."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))


TRAININGS: dict[str, Callable[[Any], Any]] = {
    "full": _everything,
    "lora": _decoder_adapters,
    "lora-all-linear": _adapters,
}


def built(name: str, blocks: int, training: str, dtype: torch.dtype, device: torch.device) -> Any:
    torch.manual_seed(0)
    return TRAININGS[training](MODELS[name](blocks).to(device, dtype)).train()
