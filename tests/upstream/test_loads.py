"""The observer on real loads of transformers."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from pytest_memleak.budget.model_sizes import ModelSizes, sizes_of
from pytest_memleak.errors import Inconclusive
from pytest_memleak.upstream.loads import ModelObserver
from pytest_memleak.upstream.watched import scope, watch, watched
from tests.upstream.addresses import made_where_one_was

Tiny = Callable[..., Any]
Load = Callable[..., Any]

EMBEDDING = 1000 * 64


def only(observer: ModelObserver) -> ModelSizes:
    models = observer.models()
    assert len(models) == 1, [sizes.title for sizes in models]
    return models[0]


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_load_says_what_the_model_was_and_what_it_became(
    family: str, tied: bool, bits: int, tiny: Tiny, load: Load, tmp_path: Path
) -> None:
    plain = tiny(family, tied=tied)
    plain.save_pretrained(tmp_path)
    with ModelObserver() as observer:
        model = load(str(tmp_path), bits=bits)
        buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
        del model
    sizes = only(observer)
    assert sizes.term("fp16_size").bytes == 2 * sum(parameter.numel() for parameter in plain.parameters())
    # The checkpoint is in fp32, the model is loaded in fp16.
    assert sizes.term("largest_param").bytes == EMBEDDING * 4
    weights = sizes.term({16: "fp16_size", 8: "int8_size", 4: "nf4_size"}[bits]).bytes
    assert sizes.term("final_size").bytes == weights + buffers


def test_the_title_names_class_and_line(load: Load, checkpoint: str, transformers: Any) -> None:
    with ModelObserver() as observer:
        transformers.LlamaForCausalLM.from_pretrained(checkpoint)
    title = only(observer).title
    assert title.startswith("LlamaForCausalLM (loaded at tests/upstream/test_loads.py:")
    assert only(observer).term("fp16_size").meaning.endswith(f"parameters × 2 B of {title}")


@pytest.mark.parametrize("bits", [16, 4, 8])
def test_an_out_of_memory_in_the_middle_of_a_load_still_resolves_what_the_model_was(
    bits: int, tiny: Tiny, load: Load, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("no room")

    import transformers.modeling_utils

    # Called by the step that reads weights, in every release.
    monkeypatch.setattr(transformers.modeling_utils, "caching_allocator_warmup", out_of_memory)
    with ModelObserver() as observer:
        with pytest.raises(torch.OutOfMemoryError):
            load(checkpoint, bits=bits)
    sizes = only(observer)
    assert sizes.term("fp16_size").bytes == sizes_of(tiny()).term("fp16_size").bytes
    assert sizes.term("largest_param").bytes == EMBEDDING * 4
    with pytest.raises(Inconclusive, match="its load ended with OutOfMemoryError"):
        sizes.term("final_size")


@pytest.mark.parametrize(("bits", "quantize"), [(4, "quantize_4bit"), (8, "int8_vectorwise_quant")])
def test_an_out_of_memory_among_the_weights_still_resolves_what_the_model_was(
    bits: int, quantize: str, tiny: Tiny, load: Load, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    functional: Any = pytest.importorskip("bitsandbytes.functional")
    really, calls = getattr(functional, quantize), []

    def third_time_out_of_memory(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no room")
        return really(*args, **kwargs)

    monkeypatch.setattr(functional, quantize, third_time_out_of_memory)
    with ModelObserver() as observer:
        # transformers 5 collects what went wrong and raises an error of its own.
        with pytest.raises(RuntimeError):
            load(checkpoint, bits=bits)
    assert only(observer).term("fp16_size").bytes == sizes_of(tiny()).term("fp16_size").bytes
    with pytest.raises(Inconclusive, match="its load ended with"):
        only(observer).term("final_size")


def test_any_quantizer_is_seen_before_it_replaces_layers(
    tiny: Tiny, load: Load, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.integrations

    def pack_everything(model: Any, *args: object, **kwargs: object) -> None:
        for layer in model.model.layers:
            layer.mlp = torch.nn.Identity()
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(transformers.integrations, "replace_with_bnb_linear", pack_everything)
    with ModelObserver() as observer:
        with pytest.raises(torch.OutOfMemoryError):
            load(checkpoint, bits=4)
    assert only(observer).term("fp16_size").bytes == sizes_of(tiny()).term("fp16_size").bytes


def test_a_load_that_found_nothing_is_no_model(load: Load, tmp_path: Path) -> None:
    with ModelObserver() as observer:
        with pytest.raises((OSError, ValueError)):
            load(str(tmp_path))
    assert observer.models() == []


def test_two_loads_are_two_models(load: Load, checkpoint: str) -> None:
    with ModelObserver() as observer:
        one = load(checkpoint)
        two = load(checkpoint, bits=4)
    assert len(observer.models()) == 2
    assert one is not two


def test_a_load_and_a_built_model_are_two_in_order(load: Load, checkpoint: str) -> None:
    with ModelObserver() as observer:
        built, loaded = torch.nn.Linear(3, 3), load(checkpoint)
    assert [sizes.title.split()[0] for sizes in observer.models()] == ["Linear", "LlamaForCausalLM"]
    assert built is not loaded


def test_what_is_built_where_a_loaded_model_was_is_another_model(
    transformers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_pretrained(cls: type, pretrained_model_name_or_path: str) -> Any:
        return torch.nn.Linear(3, 3)

    base = transformers.PreTrainedModel
    monkeypatch.setattr(base, "from_pretrained", classmethod(from_pretrained))
    with ModelObserver() as observer:
        built = made_where_one_was(lambda: base.from_pretrained("a model"), lambda: torch.nn.Linear(2, 2))
        assert [(seen.loads, model) for seen, model in observer.living()] == [((), built)]
    loaded, *_, last = observer.models()
    assert (loaded.title.split()[1], loaded.term("fp16_size").bytes) == ("(loaded", 2 * 12)
    assert (last.title.split()[1], last.term("fp16_size").bytes) == ("(built", 2 * 6)


def test_loads_of_threads_are_seen(transformers: Any, checkpoint: str) -> None:
    load = transformers.LlamaForCausalLM.from_pretrained
    with ModelObserver() as observer:
        # One after the other: loads at the same time leave transformers 5 with tied weights switched off for good.
        with ThreadPoolExecutor(1) as pool:
            models = list(pool.map(load, [checkpoint] * 3))
    assert len(observer.models()) == len(models) == 3
    assert all("final_size" in sizes.terms for sizes in observer.models())


def test_output_loading_info_changes_nothing(transformers: Any, checkpoint: str) -> None:
    with ModelObserver() as observer:
        _, info = transformers.LlamaForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert "final_size" in only(observer).terms
    assert "missing_keys" in info


def test_a_base_model_out_of_a_checkpoint_with_a_head(transformers: Any, tiny: Tiny, tmp_path: Path) -> None:
    tiny(tied=False).to(torch.bfloat16).save_pretrained(tmp_path)
    with ModelObserver() as observer:
        model = transformers.LlamaModel.from_pretrained(tmp_path)
    sizes = only(observer)
    assert sizes.term("fp16_size").bytes == 2 * sum(parameter.numel() for parameter in model.parameters())
    # The names differ by a prefix; the dtype of the checkpoint is known all the same.
    assert sizes.term("largest_param").bytes == EMBEDDING * 2


def test_a_model_built_by_transformers_is_seen(tiny: Tiny) -> None:
    with ModelObserver() as observer:
        model = tiny()
    assert only(observer).term("fp16_size").bytes == sizes_of(model).term("fp16_size").bytes
    assert "built at" in only(observer).title


def test_a_wrapper_without_weights_counts_as_the_load(load: Load, checkpoint: str) -> None:
    with ModelObserver() as observer:
        wrapper = torch.nn.Sequential(load(checkpoint, bits=8))
        wrapper.append(torch.nn.ReLU())
    assert only(observer).title.startswith("LlamaForCausalLM (loaded")
    assert only(observer).term("largest_param").bytes == EMBEDDING * 4


def test_a_wrapper_of_peft_counts_once_with_its_own_weights(load: Load, checkpoint: str, tiny: Tiny) -> None:
    peft: Any = pytest.importorskip("peft")
    with ModelObserver() as observer:
        adapted = peft.get_peft_model(load(checkpoint, bits=4), peft.LoraConfig(r=4, target_modules=["q_proj"]))
        lora = sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)
        del adapted
        gc.collect()
    sizes = only(observer)
    assert lora > 0
    assert sizes.title.startswith("PeftModel")
    assert sizes.term("fp16_size").bytes == sizes_of(tiny()).term("fp16_size").bytes + 2 * lora
    assert sizes.term("largest_param").bytes == EMBEDDING * 4


def test_a_load_keeps_neither_model_nor_tensor_alive(load: Load, checkpoint: str) -> None:
    with ModelObserver():
        model = load(checkpoint)
        assert not any(weakref.getweakrefcount(parameter) for parameter in model.parameters())
        alive = weakref.ref(model)
        del model
        gc.collect()
        assert alive() is None


def test_a_failed_load_keeps_nothing_alive(load: Load, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    seen: list[weakref.ref[Any]] = []

    def fail(model: Any, *args: object) -> None:
        seen.append(weakref.ref(model))
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(transformers.modeling_utils, "caching_allocator_warmup", fail)
    with ModelObserver() as observer:
        with pytest.raises(torch.OutOfMemoryError):
            load(checkpoint)
        gc.collect()
        assert [ref() for ref in seen] == [None]
        assert len(observer.models()) == 1


def test_transformers_is_as_it_was_after_the_window(transformers: Any, checkpoint: str) -> None:
    base = transformers.PreTrainedModel
    quantizer = transformers.quantizers.base.HfQuantizer
    before = dict(vars(base)), dict(vars(quantizer))
    with ModelObserver():
        assert dict(vars(base)) != before[0]
        with pytest.raises((OSError, ValueError)):
            transformers.LlamaForCausalLM.from_pretrained("./nowhere")
    assert (dict(vars(base)), dict(vars(quantizer))) == before


def test_transformers_imported_in_the_middle_is_watched(checkpoint: str) -> None:
    code = f"""
import sys, torch
from pytest_memleak.upstream.loads import ModelObserver
assert "transformers" not in sys.modules
with ModelObserver() as observer:
    from transformers import LlamaForCausalLM, PreTrainedModel
    LlamaForCausalLM.from_pretrained({checkpoint!r})
sizes, = observer.models()
print(sizes.title, sizes.term("largest_param").bytes, sizes.term("final_size").bytes)
assert "pytest_memleak" not in PreTrainedModel.from_pretrained.__code__.co_filename
assert "__init_subclass__" not in vars(torch.nn.Module)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "LlamaForCausalLM (loaded at <string>:7)" in done.stdout


def test_who_has_the_model_in_hand_gets_what_its_load_has_shown(load: Load, checkpoint: str) -> None:
    with ModelObserver() as observer:
        model = load(checkpoint, bits=8)
    assert sizes_of(model) is only(observer)
    twin = load(checkpoint, bits=8)
    assert sizes_of(twin).term("largest_param").bytes == EMBEDDING * 2


def test_what_is_watched_belongs_to_its_scope_and_is_not_held() -> None:
    model = torch.nn.Linear(2, 2)
    alive = weakref.ref(model)
    with scope() as outer:
        watch(model)
        with scope():
            assert [sizes.title for sizes in watched()] == ["Linear"]
            watch(torch.nn.Bilinear(2, 2, 2))
            assert [sizes.title for sizes in watched()] == ["Bilinear"]
        assert watched() == outer.models
        del model
        assert alive() is None
        assert watched()[0].term("fp16_size").bytes == 12
    assert watched() == []


def test_what_a_thread_of_the_test_watches_is_the_tests() -> None:
    with scope() as opened:
        thread = threading.Thread(target=watch, args=[torch.nn.Linear(2, 2)])
        thread.start()
        thread.join()
        assert len(opened.models) == 1


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_while_it_loads_it_is_told_what_the_model_will_be(
    bits: int, tied: bool, tiny: Tiny, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import core_model_loading

    tiny(tied=tied).save_pretrained(tmp_path)
    told: list[ModelSizes] = []
    with ModelObserver() as observer:
        found = core_model_loading.convert_and_load_state_dict_in_model

        def meanwhile(*args: Any, **options: Any) -> Any:
            # Another thread may ask: some releases load in several.
            with ThreadPoolExecutor(1) as pool:
                told.extend(pool.submit(observer.expected).result())
            return found(*args, **options)

        monkeypatch.setattr("transformers.modeling_utils.convert_and_load_state_dict_in_model", meanwhile)
        load(str(tmp_path), bits=bits)
        assert observer.expected() == []
    (expected,) = told
    sizes = only(observer)
    for name in ("fp16_size", "largest_param", "final_size"):
        assert expected.term(name).bytes == sizes.term(name).bytes


def test_a_load_that_failed_is_not_expected_any_more(
    load: Load, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr("transformers.modeling_utils.convert_and_load_state_dict_in_model", fail)
    with ModelObserver() as observer:
        with pytest.raises(RuntimeError, match="the disk is gone"):
            load(checkpoint)
        assert observer.expected() == []
