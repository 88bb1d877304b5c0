"""Loads under FSDP with cpu_ram_efficient_loading, on two ranks: what the one commits that waits for the other.

Every rank loads the same checkpoint; `prepare` shards it and sends rank 0's weights, on GPUs or on CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Path]

VARIABLES = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_VERSION": "2",
    "HF_HUB_OFFLINE": "1",
}
"""By these transformers and accelerate know how a model is to be loaded. A launcher sets them."""
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16}
"""520 MiB in fp16."""
SMALL = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4}
"""30 MiB."""


EXPERTS = {"hidden_size": 1024, "moe_intermediate_size": 1024, "num_experts": 16, "num_hidden_layers": 4}
"""400 MiB in fp16, nearly all of it in experts."""


def config(**sizes: Any) -> Any:
    from transformers import LlamaConfig

    heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    return LlamaConfig(vocab_size=2048, max_position_embeddings=512, **heads, **sizes)


def mixture_config() -> Any:
    from transformers import Qwen3MoeConfig

    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128}
    return Qwen3MoeConfig(vocab_size=2048, intermediate_size=1024, num_experts_per_tok=2, **heads, **EXPERTS)


def scaled_llama() -> Any:
    """A class with one persistent buffer, which the forward uses."""
    import torch
    from transformers import LlamaForCausalLM

    class ScaledLlama(LlamaForCausalLM):  # type: ignore[misc]  # to mypy its base is anything
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.register_buffer("scale", torch.ones(config.vocab_size), persistent=True)

        def _init_weights(self, module: Any) -> None:
            super()._init_weights(module)
            if module is self and not getattr(self.scale, "_is_hf_initialized", False):
                self.scale.fill_(1.0)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * self.scale.to(out.logits.dtype)
            return out

    return ScaledLlama


def load(folder: Path, dtype: str = "float16", kind: Any = None) -> Any:
    from transformers import AutoModelForCausalLM

    # The name that transformers 4 and 5 both take.
    return (kind or AutoModelForCausalLM).from_pretrained(folder, torch_dtype=dtype)


def prepare(model: Any, *others: Any, mixed_precision: str = "no") -> Any:
    """What accelerate makes of a model, and of an optimizer beside it.

    On CPUs its Accelerator takes DDP for FSDP, so that it is told afterwards.
    """
    import torch
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    AcceleratorState._reset_state(reset_partial_state=True)  # what a model before this one was prepared for
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        cpu_ram_efficient_loading=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        reshard_after_forward=True,
    )
    if torch.cuda.is_available():
        accelerator = Accelerator(fsdp_plugin=plugin, mixed_precision=mixed_precision)
    else:
        accelerator = Accelerator(cpu=True, mixed_precision=mixed_precision)
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
        if mixed_precision != "no":
            plugin.set_mixed_precision(mixed_precision)
    return accelerator.prepare(model, *others)


@pytest.fixture(scope="module", autouse=True)
def launched() -> Iterator[None]:
    """As accelerate's launcher starts a rank; and with what loads import, so that no test counts that."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in VARIABLES.items():
            patch.setenv(name, value)
        from transformers import LlamaForCausalLM

        LlamaForCausalLM(config(hidden_size=64, intermediate_size=64, num_hidden_layers=1))
        yield


@pytest.fixture(scope="module")
def large(checkpoint: Make) -> Path:
    return checkpoint(config(**LARGE), dtype="float16", sparse=True)  # zeros that take no disk


@pytest.fixture(scope="module")
def small(checkpoint: Make) -> Path:
    return checkpoint(config(**SMALL), dtype="float16")


@pytest.fixture(scope="module")
def mixture(checkpoint: Make) -> Path:
    return checkpoint(mixture_config(), dtype="float16", sparse=True)


@pytest.mark.ranks(2)
@pytest.mark.max_host_peak("1.3 * fp16_size", rank="sum")
def test_experts_are_put_together_once(mixture: Path) -> None:
    load(mixture)


@pytest.mark.ranks(2)
@pytest.mark.max_host_peak("0.05 * fp16_size")
def test_no_rank_commits_the_model(large: Path) -> None:
    load(large)


@pytest.mark.ranks(2)
@pytest.mark.no_nan(poison=True)
def test_no_rank_holds_nan(small: Path) -> None:
    load(small)


@pytest.mark.ranks(2)
def test_persistent_buffers_are_rank_0s(small: Path) -> None:
    import torch
    from torch import distributed

    model = load(small, kind=scaled_llama())
    if distributed.get_rank() == 0:
        model.scale.fill_(3.0)
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer = prepare(model, optimizer)
    assert bool((model.scale == 3.0).all())
    logits = model(input_ids=torch.arange(5, 21)[None].to(model.device)).logits.detach()
    others = [torch.empty_like(logits) for _ in range(distributed.get_world_size())]
    distributed.all_gather(others, logits)
    assert all(torch.equal(logits, other) for other in others)


@pytest.mark.ranks(2)
def test_optimizers_know_each_parameter(small: Path) -> None:
    import torch

    model = load(small)
    model, optimizer = prepare(model, torch.optim.AdamW(model.parameters()))
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert known == {id(parameter) for parameter in model.parameters()}
