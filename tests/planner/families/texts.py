"""Models of text."""

from __future__ import annotations

from typing import Any

from tests.planner.families.sizes import GEMMA3, LAYERS, TEXT, VOCABULARY, family


@family
def qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**TEXT))


@family
def qwen3() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**TEXT, head_dim=16))


@family
def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**TEXT))


@family
def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=LAYERS, n_head=4, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config)


@family
def gemma3_text() -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(Gemma3TextConfig(**TEXT, **GEMMA3))


@family
def qwen3_moe() -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [0]}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**TEXT, head_dim=16, **experts))


@family
def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**TEXT, num_local_experts=LAYERS, num_experts_per_tok=2))


@family
def gpt_oss() -> Any:
    from transformers import GptOssConfig, GptOssForCausalLM

    sizes = {"head_dim": 16, "num_local_experts": LAYERS, "num_experts_per_tok": 2, "sliding_window": 32}
    return GptOssForCausalLM(GptOssConfig(**{**TEXT, "max_position_embeddings": 131072}, **sizes))


@family
def modernbert_decoder() -> Any:
    from transformers import ModernBertDecoderConfig, ModernBertDecoderForCausalLM

    ids = {"cls_token_id": 1, "sep_token_id": 2}
    config = ModernBertDecoderConfig(**TEXT, **ids, layer_types=["full_attention"] * LAYERS)
    return ModernBertDecoderForCausalLM(config)


@family
def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_decoder_layers=LAYERS)
    return T5ForConditionalGeneration(config)
