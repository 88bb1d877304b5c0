"""What small models of all families have in common, and who builds which."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

from packaging.version import Version

LAYERS = 4
VOCABULARY = 512

# Smaller than any real one, and with its proportions: several layers, grouped heads, sizes that are not the same.
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA3 = {"head_dim": 16, "sliding_window": 32, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]}
QWEN_TOKENS = {"image_token_id": 500, "video_token_id": 501, "vision_start_token_id": 502, "vision_end_token_id": 503}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
QWEN_VISION: dict[str, Any] = {
    "depth": 6,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
}
WHISPER: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "num_mel_bins": 16,
    "max_source_positions": 40,
}


BUILDERS: dict[str, Callable[[], Any]] = {}


def family(builder: Callable[[], Any]) -> Callable[[], Any]:
    BUILDERS[builder.__name__] = builder
    return builder


def mrope(*sections: int, **more: Any) -> dict[str, Any]:
    """Positions in time, height and width. Before transformers 5 they had another name, and the base stood beside."""
    if Version(metadata.version("transformers")) < Version("5"):
        return {"rope_scaling": {"rope_type": "default", "mrope_section": list(sections), **more}, "rope_theta": 1e6}
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sections), **more}}
