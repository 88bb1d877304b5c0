"""Models of text and audio."""

from __future__ import annotations

from typing import Any

from tests.planner.families.sizes import LAYERS, QWEN_VISION, TEXT, VOCABULARY, WHISPER, family, mrope


@family
def qwen2_audio() -> Any:
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    audio = {**WHISPER, "model_type": "qwen2_audio_encoder"}
    text = {**TEXT, "model_type": "qwen2"}
    config = Qwen2AudioConfig(text_config=text, audio_config=audio, audio_token_index=500)
    return Qwen2AudioForConditionalGeneration(config)


@family
def voxtral() -> Any:
    from transformers import VoxtralConfig, VoxtralForConditionalGeneration

    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    audio = {**sizes, "num_mel_bins": 16, "max_source_positions": 40, "model_type": "voxtral_encoder"}
    text = {**TEXT, "model_type": "llama"}
    return VoxtralForConditionalGeneration(VoxtralConfig(text_config=text, audio_config=audio, audio_token_id=500))


@family
def granite_speech() -> Any:
    from transformers import GraniteSpeechConfig, GraniteSpeechForConditionalGeneration

    encoder = {"input_dim": 16, "num_layers": 2, "hidden_dim": 32, "num_heads": 2, "output_dim": 8, "context_size": 20}
    projector = {
        **{"model_type": "blip_2_qformer", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 48, "encoder_hidden_size": 32},
    }
    config = GraniteSpeechConfig(
        text_config={**TEXT, "model_type": "granite"},
        encoder_config=encoder,
        projector_config=projector,
        audio_token_index=500,
        has_lora_adapter=False,
    )
    return GraniteSpeechForConditionalGeneration(config)


@family
def qwen2_5_omni() -> Any:
    from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

    vision = {**QWEN_VISION, "patch_size": 14, "fullatt_block_indexes": [1, 3], "window_size": 56}
    audio = {**WHISPER, "n_window": 10, "output_dim": 64}
    ids = {"image_token_index": 500, "video_token_index": 501, "audio_token_index": 504}
    marks = {"vision_start_token_id": 502, "vision_end_token_id": 503}
    more = {"audio_start_token_id": 505, "audio_end_token_id": 506, "position_id_per_seconds": 25}
    config = Qwen2_5OmniThinkerConfig(
        text_config={**TEXT, **mrope(2, 3, 3)},
        vision_config=vision,
        audio_config=audio,
        **ids,
        **marks,
        **more,
    )
    return Qwen2_5OmniThinkerForConditionalGeneration(config)


@family
def whisper() -> Any:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    heads = {"decoder_layers": LAYERS, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "max_target_positions": 64}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return WhisperForConditionalGeneration(WhisperConfig(vocab_size=VOCABULARY, **WHISPER, **heads, **ids))
