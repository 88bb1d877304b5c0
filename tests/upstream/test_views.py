"""Modules around other modules: slices and wrappers, which are no models of their own, or stand for the one inside."""

from __future__ import annotations

import gc
import types
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn

from pytest_memleak.upstream.loads import ModelObserver

IDS = [[1, 2, 3]]


def names(observer: ModelObserver) -> list[str]:
    return [sizes.title.split()[0] for sizes in observer.models()]


def run(model: Any) -> None:
    model(torch.tensor(IDS)).logits.sum().backward()
    model.generate(torch.tensor(IDS), max_new_tokens=2, do_sample=False)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_calling_a_model_of_before_shows_no_model(tiny: Callable[..., Any], family: str) -> None:
    model = tiny(family)
    with ModelObserver() as observer:
        run(model)
        assert names(observer) == []
    assert names(observer) == []


def test_calling_a_model_shows_that_model_only(tiny: Callable[..., Any]) -> None:
    with ModelObserver() as observer:
        model = tiny()
        run(model)
        assert names(observer) == ["LlamaForCausalLM"]
        del model
        gc.collect()
        assert names(observer) == ["LlamaForCausalLM"]


def test_calling_a_loaded_model_shows_its_load_only(load: Callable[..., Any], checkpoint: str) -> None:
    with ModelObserver() as observer:
        model = load(checkpoint, torch_dtype=torch.float32)
        run(model)
        layers = model.model.layers[:1]
        assert [sizes.title.split(" (")[1][:6] for sizes in observer.models()] == ["loaded"]
        assert isinstance(layers, nn.ModuleList)


def test_slices_that_stay_add_nothing() -> None:
    before = net()
    with ModelObserver() as observer:
        view = before[:1]
        assert names(observer) == []
        model = nn.ModuleList([net()])
        inner: Any = model[0]
        slices = [model[:1], inner[:1], nn.ModuleDict({"a": inner[2]})]
        del inner
        assert names(observer) == ["ModuleList"]
        del model
        assert names(observer) == ["ModuleList"]
        assert isinstance(view, nn.Sequential)
        assert len(slices) == 3


def test_a_slice_of_parameters_is_no_model() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scales = nn.ParameterList([torch.ones(2), torch.ones(2)])

    before = Scaled()
    with ModelObserver() as observer:
        view = before.scales[:1]
        assert names(observer) == []
        model = Scaled()
        assert names(observer) == ["Scaled"]
        assert len(view) + len(model.scales) == 3


@pytest.mark.parametrize("wrap", [nn.Sequential, nn.DataParallel, lambda model: nn.Sequential(nn.Sequential(model))])
def test_a_wrapper_stands_for_its_model_while_it_lives(wrap: Callable[[nn.Module], nn.Module]) -> None:
    with ModelObserver() as observer:
        model = nn.Bilinear(2, 2, 2)
        wrapper: Any = wrap(model)
        assert names(observer) == [type(wrapper).__name__]
        del wrapper
        assert names(observer) == ["Bilinear"]
        again = wrap(model)
        assert names(observer) == [type(again).__name__]
        del model, again
        assert names(observer) == [type(wrap(nn.ReLU())).__name__]


def test_a_wrapper_of_a_model_of_before_is_no_model() -> None:
    model = net()
    with ModelObserver() as observer:
        wrapper = nn.DataParallel(model)
        assert names(observer) == []
        del wrapper
        assert names(observer) == []


def test_a_wrapper_of_a_wider_fixtures_model_is_no_model_in_the_first_test_either() -> None:
    with ModelObserver() as observer:
        observer.pause()
        model = net()
        observer.resume()
        wrapper = nn.DataParallel(model)
        assert names(observer) == []
        del wrapper
        assert names(observer) == []


def test_a_wrapper_with_parameters_of_its_own_counts_also_around_what_stays() -> None:
    class Head(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body
            self.head = nn.Linear(4, 1)

    body = net()
    with ModelObserver() as observer:
        Head(body)
        assert names(observer) == ["Head"]


def test_what_was_put_together_counts_once_though_somebody_keeps_its_parts() -> None:
    with ModelObserver() as observer:
        model = net()
        parts = list(model)
        del model
        assert names(observer) == ["Sequential"]
        other = nn.Sequential(*parts)
        assert names(observer) == ["Sequential", "Sequential"]
        assert len(other) == 3


def test_parts_that_refer_to_themselves_do_not_become_models() -> None:
    class Patched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(2, 2)])
            for layer in self.layers:
                layer.forward = types.MethodType(nn.Linear.forward, layer)

    with ModelObserver() as observer:
        Patched()
        assert names(observer) == ["Patched"]
        gc.collect()
        assert names(observer) == ["Patched"]


def test_a_part_that_moves_to_another_module_belongs_there() -> None:
    with ModelObserver() as observer:
        model = nn.Bilinear(2, 2, 2)
        first = nn.Sequential(model)
        second = nn.Sequential(model)
        del first
        assert names(observer) == ["Sequential"]
        del second
        assert names(observer) == ["Bilinear"]


def test_a_loaded_model_comes_back_when_its_wrapper_goes(load: Callable[..., Any], checkpoint: str) -> None:
    with ModelObserver() as observer:
        model = load(checkpoint)
        expected = [sizes.terms["fp16_size"].bytes for sizes in observer.models()]
        for wrap in (nn.Sequential, nn.DataParallel):
            wrapper = wrap(model)
            assert [sizes.terms["fp16_size"].bytes for sizes in observer.models()] == expected
            del wrapper
            assert [sizes.terms["fp16_size"].bytes for sizes in observer.models()] == expected


def test_modules_that_register_each_other_end_the_search() -> None:
    with ModelObserver() as observer:
        outer, inner = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
        top = nn.Sequential(outer)
        outer.append(inner)
        inner.register_module("back", outer)
        assert names(observer) == ["Sequential"]
        del top, outer, inner
        gc.collect()
        assert len(names(observer)) <= 1


def test_peft_around_a_model_of_the_test_and_of_before(tiny: Callable[..., Any]) -> None:
    peft = pytest.importorskip("peft")
    config = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    before = tiny()
    with ModelObserver() as observer:
        wrapped = peft.get_peft_model(before, peft.LoraConfig(**config))
        wrapped(torch.tensor(IDS))
        assert names(observer) == []
        del wrapped
    with ModelObserver() as observer:
        mine = tiny()
        wrapped = peft.get_peft_model(mine, peft.LoraConfig(**config))
        wrapped(torch.tensor(IDS)).logits.sum().backward()
        assert names(observer) == ["PeftModelForCausalLM"]
        del wrapped
        gc.collect()
        assert names(observer) == ["LlamaForCausalLM"]


def test_a_training_loop_remembers_nothing_more_with_every_step(tiny: Callable[..., Any]) -> None:
    with ModelObserver() as observer:
        model = tiny()
        model(torch.tensor(IDS))
        homes = {key: len(entry.homes) for key, entry in observer._family._built.items()}
        for _ in range(3):
            model(torch.tensor(IDS))
        assert {key: len(entry.homes) for key, entry in observer._family._built.items()} == homes
