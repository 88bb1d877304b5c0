"""Models of text and images."""

from __future__ import annotations

from typing import Any

import torch

from tests.planner.families.sizes import GEMMA3, LAYERS, QWEN_TOKENS, QWEN_VISION, TEXT, VISION, family, mrope


@family
def qwen2_vl() -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {"depth": 6, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 64, "patch_size": 14}
    text = {**TEXT, **mrope(2, 3, 3)}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **QWEN_TOKENS))


@family
def qwen2_5_vl() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {**QWEN_VISION, "patch_size": 14, "fullatt_block_indexes": [1, 3], "window_size": 56}
    text = {**TEXT, **mrope(2, 3, 3)}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **QWEN_TOKENS))


@family
def qwen3_vl() -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = {**QWEN_VISION, "patch_size": 16, "num_position_embeddings": 256, "deepstack_visual_indexes": [1, 2]}
    text = {**TEXT, "head_dim": 16, **mrope(2, 3, 3, mrope_interleaved=True)}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_TOKENS))


@family
def qwen3_5() -> Any:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    vision = {**QWEN_VISION, "patch_size": 16, "num_position_embeddings": 256}
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16}
    rope = mrope(2, 1, 1, partial_rotary_factor=0.5, mrope_interleaved=True)
    text = {**TEXT, "head_dim": 16, "linear_value_head_dim": 16, **heads, **rope}
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision, **QWEN_TOKENS))


@family
def idefics3() -> Any:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    return Idefics3ForConditionalGeneration(Idefics3Config(**_shuffled()))


@family
def smolvlm() -> Any:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    return SmolVLMForConditionalGeneration(SmolVLMConfig(**_shuffled()))


def _shuffled() -> dict[str, Any]:
    # Deeper than the decoder: who takes the longest list for the blocks takes this one.
    vision = {**VISION, "num_hidden_layers": LAYERS + 2, "image_size": 128, "patch_size": 16}
    text = {**TEXT, "model_type": "llama"}
    return {"text_config": text, "vision_config": vision, "scale_factor": 2, "image_token_id": 500, "pad_token_id": 0}


@family
def gemma3() -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    # As many layers in the tower as in the decoder: their number alone does not tell.
    vision = {**VISION, "num_hidden_layers": LAYERS, "image_size": 112, "patch_size": 14}
    ids = {"image_token_index": 500, "boi_token_index": 501, "eoi_token_index": 502}
    config = Gemma3Config(text_config={**TEXT, **GEMMA3}, vision_config=vision, mm_tokens_per_image=16, **ids)
    model = Gemma3ForConditionalGeneration(config)
    # New ones are all zero, which no gradient gets through.
    projection = next(one for name, one in model.named_parameters() if name.endswith("mm_input_projection_weight"))
    torch.nn.init.normal_(projection)
    return model


@family
def llava() -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    vision = {**VISION, "model_type": "clip_vision_model", "image_size": 112, "patch_size": 14, "projection_dim": 32}
    text = {**TEXT, "model_type": "llama"}
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=500, image_seq_length=64)
    return LlavaForConditionalGeneration(config)
