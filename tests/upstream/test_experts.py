"""Which parameters are experts: small modules of every kind, and the causal LMs of the installed transformers."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn

from pytest_memleak.upstream.experts import expert_parameters


def stack(*shape: int, dtype: Any = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=dtype.is_floating_point)


class Plain(nn.Module):
    """A module that holds what it is given."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class SomeExperts(Plain):
    pass


def names(model: nn.Module) -> list[str]:
    return [one.name for one in expert_parameters(model)]


def test_a_router_beside_a_stack_tells() -> None:
    block = Plain(route=nn.Linear(8, 4), ins=Plain(w=stack(4, 16, 8)), outs=Plain(w=stack(4, 8, 16)))
    assert names(Plain(block=block)) == ["block.ins.w", "block.outs.w"]
    assert names(Plain(blocks=nn.ModuleList([block]))) == ["blocks.0.ins.w", "blocks.0.outs.w"]


def test_a_router_may_be_a_parameter_or_stand_one_block_further_out() -> None:
    assert names(Plain(route=stack(4, 8), ins=Plain(w=stack(4, 16, 8)))) == ["ins.w"]
    block = Plain(route=Plain(gate=nn.Linear(8, 4)), mlp=Plain(ins=Plain(w=stack(4, 16, 8))))
    assert names(Plain(block=block)) == ["block.mlp.ins.w"]


def test_a_name_tells_where_there_is_no_router() -> None:
    assert names(Plain(mlp=Plain(shared_experts=Plain(up=stack(2, 16, 8))))) == ["mlp.shared_experts.up"]
    assert names(Plain(mlp=SomeExperts(up=stack(2, 16, 8)))) == ["mlp.up"]
    assert names(SomeExperts(up=stack(2, 16, 8))) == ["up"]


# Made by the test: what is made here would be held in every process that collects this file, in other tests' peaks.
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Plain(route=nn.Linear(64, 64), conv=nn.Conv1d(64, 64, 3)), "a convolution"),
        (lambda: SomeExperts(conv=nn.Conv1d(64, 64, 3)), "a convolution of experts"),
        (lambda: Plain(route=nn.Linear(8, 4), gates=Plain(w=stack(3, 16, 8))), "as many rows as nobody has matrices"),
        (lambda: Plain(route=nn.Linear(9, 4), gates=Plain(w=stack(4, 16, 8))), "a router of something else"),
        (lambda: Plain(gates=Plain(w=stack(4, 16, 8), b=stack(4, 8))), "its own biases"),
        (lambda: Plain(layers=nn.ModuleList([Plain(w=stack(4, 16, 8)), nn.Linear(8, 4)])), "another layer's weight"),
        (lambda: Plain(experts=Plain(bias=stack(4, 1, 8), norm=stack(8), both=stack(4, 8))), "biases and norms"),
        (
            lambda: Plain(action_expert=Plain(positions=stack(1, 16, 8))),
            "positions of a model that is called an expert",
        ),
        (lambda: Plain(experts=Plain(packed=stack(4, 16, 8, dtype=torch.uint8))), "what is packed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_expert(make: Callable[[], nn.Module], why: str) -> None:
    assert names(make()) == []


def test_a_block_that_is_used_twice_counts_once() -> None:
    experts = SomeExperts(up=stack(2, 16, 8))
    assert names(Plain(first=experts, second=experts)) == ["first.up"]


def test_a_quantized_router_is_one() -> None:
    layers = pytest.importorskip("bitsandbytes.nn")
    router = layers.Linear4bit(64, 4)
    assert names(Plain(route=router, ins=Plain(w=stack(4, 16, 64)))) == ["ins.w"]
    router.to("cpu")  # packs its weight
    assert names(Plain(route=router, ins=Plain(w=stack(4, 16, 64)))) == ["ins.w"]


RELEASES = {"5.23.0": (167, 50), "5.24.0": (175, 54)}
"""Causal LMs that could be built, and those with experts. What was found and what not was looked at, name by name."""


def test_every_causal_lm_of_the_installed_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Built on meta, in ten seconds. The counts are of pinned releases; whatever the release, no mixture is missed."""
    pytest.importorskip("transformers.core_model_loading")
    from benchmarks.experts_census import Census, causal_lms, take

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    census = Census()
    for kind in causal_lms():
        take(census, kind)
    found = {name for kinds in census.experts.values() for name in kinds}
    others = {name for kinds in census.others.values() for name in kinds}
    assert not [name for name in others if "expert" in name]
    assert not [name for name in found if "conv" in name or "norm" in name]
    assert {"qwen3_moe", "mixtral", "gpt_oss", "jetmoe", "deepseek_v3"} <= set(census.experts)
    assert "model.layers.mlp.input_linear.weight" in census.experts["jetmoe"]
    counts = RELEASES.get(metadata.version("transformers"))
    if counts is not None:
        # Some are built only where packages for images or sound are installed.
        assert len(census.built) >= counts[0]
        assert len(census.experts) == counts[1]
    if metadata.version("transformers") == "5.23.0":
        assert dict(census.leaves()) == {"down_proj": 49, "gate_up_proj": 48, "up_proj": 2, "gate_proj": 1, "weight": 1}
