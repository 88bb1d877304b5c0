"""Which loads get a pool of threads, with the fix, with the bug, and with both: each its own, whatever others do.

The installed loader makes no pool where one quantizes. A stand-in does as 5.3 did; whole loads are in
tests/regressions/.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, core_model_loading, modeling_utils

from pytest_memleak.fixes.four_bit_load import FIX
from pytest_memleak.upstream.checkpoints import make_checkpoint
from pytest_memleak.upstream.patches import Unrecognised

QUANTIZES = SimpleNamespace(pre_quantized=False)
QUANTIZED = SimpleNamespace(pre_quantized=True)
Calls = list[Callable[[], object]]

by_itself = pytest.mark.skipif(FIX.needed(), reason="this release has the bug by itself, and none is put in")
PATCHED = ("ThreadPoolExecutor", "spawn_materialize")


def config(quantizer: object = None, **others: object) -> SimpleNamespace:
    return SimpleNamespace(hf_quantizer=quantizer, **{"device_map": {"": "cuda:0"}, **others})


def load(quantizer: object = None, **others: object) -> Any:
    return modeling_utils.convert_and_load_state_dict_in_model(None, {}, load_config=config(quantizer, **others))


@pytest.fixture(autouse=True)
def puts_back_what_it_found() -> Iterator[None]:
    before = [getattr(core_model_loading, name) for name in PATCHED]
    whole = modeling_utils.convert_and_load_state_dict_in_model
    yield
    assert [getattr(core_model_loading, name) for name in PATCHED] == before
    assert modeling_utils.convert_and_load_state_dict_in_model is whole


@pytest.fixture
def old_loader(puts_back_what_it_found: None) -> Iterator[Calls]:
    """As in 5.3, a load makes a pool whatever it loads, and here returns it. What is in the list it calls first."""
    on_the_way: Calls = []

    def convert(model: object, state_dict: object, load_config: Any) -> object:
        for call in on_the_way:
            call()
        pool = core_model_loading.ThreadPoolExecutor(max_workers=1)
        for call in on_the_way:
            call()
        return pool

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_utils, "convert_and_load_state_dict_in_model", convert)
        yield on_the_way


@pytest.fixture
def new_loader(puts_back_what_it_found: None) -> Iterator[None]:
    """As since 5.4, without a pool where a load quantizes. One returns the thread of a pool that read its tensor."""

    class Slice:
        def __getitem__(self, key: object) -> Slice:
            return self

        def to(self, **how: object) -> str:
            return threading.current_thread().name

    def convert(model: object, state_dict: object, load_config: Any) -> object:
        handed = core_model_loading.spawn_materialize(None, Slice(), "cpu", None)
        return handed.result() if isinstance(handed, Future) else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_utils, "convert_and_load_state_dict_in_model", convert)
        yield


@contextmanager
def mended() -> Iterator[None]:
    """With the bug, or the fix would find nothing to mend in the installed release."""
    with FIX.bug(), FIX.fixed() as applied:
        assert applied.patched
        yield


def test_only_a_load_that_quantizes_goes_without_a_pool(old_loader: Calls) -> None:
    with mended():
        assert load(QUANTIZES) is None
        assert isinstance(load(QUANTIZED), ThreadPoolExecutor)
        assert isinstance(load(None), ThreadPoolExecutor)
        assert isinstance(core_model_loading.ThreadPoolExecutor(max_workers=1), ThreadPoolExecutor)
    assert isinstance(load(QUANTIZES), ThreadPoolExecutor)


def test_loads_at_the_same_time_do_not_mix(old_loader: Calls) -> None:
    together = threading.Barrier(2, timeout=60)
    old_loader.append(together.wait)
    with mended(), ThreadPoolExecutor(2) as threads:
        quantizing, plain = threads.submit(load, QUANTIZES), threads.submit(load, None)
    assert quantizing.result() is None
    assert isinstance(plain.result(), ThreadPoolExecutor)


def test_a_load_within_a_load_and_one_that_fails(old_loader: Calls) -> None:
    inner: list[object] = []

    def loads_another() -> None:
        old_loader.clear()
        inner.append(load(None))

    def fails() -> None:
        raise OSError("no such file")

    with mended():
        old_loader.append(loads_another)
        assert load(QUANTIZES) is None
        assert isinstance(inner[0], ThreadPoolExecutor)
        old_loader.append(fails)
        with pytest.raises(OSError, match="no such file"):
            load(QUANTIZES)
        assert isinstance(core_model_loading.ThreadPoolExecutor(max_workers=1), ThreadPoolExecutor)


@by_itself
@pytest.mark.usefixtures("new_loader")
class TestBug:
    def test_only_a_load_that_quantizes_gets_the_pool(self) -> None:
        assert load(QUANTIZES) is None
        with FIX.bug() as applied:
            assert "spawn_materialize" in str(applied)
            assert load(QUANTIZES).startswith("ThreadPoolExecutor")
            assert load(QUANTIZED) is None
            assert load(None) is None
        assert load(QUANTIZES) is None

    def test_the_fix_takes_it_away(self) -> None:
        with FIX.bug(), FIX.fixed() as applied:
            assert applied.patched
            assert load(QUANTIZES) is None
        with FIX.fixed() as applied, FIX.bug():
            assert load(QUANTIZES) is None

    @pytest.mark.parametrize("others", [{"device_map": {"a": "cpu", "b": "disk"}}, {"device_map": None}])
    def test_offloading_has_no_pool(self, others: dict[str, object]) -> None:
        with FIX.bug():
            assert (load(QUANTIZES, **others) is None) == (others["device_map"] is not None)

    def test_the_environment_has_its_say(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
        with FIX.bug():
            assert load(QUANTIZES) is None

    def test_a_load_that_fails_leaves_its_pool_nothing_to_do(self) -> None:
        go_on, handed = threading.Event(), []

        def fails(model: object, state_dict: object, load_config: Any) -> None:
            for _ in range(core_model_loading.GLOBAL_WORKERS + 1):
                slow = SimpleNamespace(to=lambda **how: go_on.wait(60))
                handed.append(core_model_loading.spawn_materialize(None, {...: slow}, "cpu", None))
            raise OSError("no such file")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(modeling_utils, "convert_and_load_state_dict_in_model", fails)
            with FIX.bug(), pytest.raises(OSError, match="no such file"):
                load(QUANTIZES)
        assert handed[-1].cancelled()
        go_on.set()


@by_itself
@pytest.mark.parametrize(
    ("module", "name", "changed"),
    [
        (core_model_loading, "spawn_materialize", lambda tensor, device: None),
        (core_model_loading, "GLOBAL_WORKERS", None),
        (modeling_utils, "LoadStateDictConfig", lambda quantizer: None),
        (modeling_utils, "convert_and_load_state_dict_in_model", lambda model, state_dict, config: None),
    ],
)
def test_a_loader_that_has_changed_is_left_alone(module: Any, name: str, changed: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(module, name) if changed is None else patch.setattr(module, name, changed)
        with pytest.raises(Unrecognised, match=name), FIX.bug():
            pass


def test_what_was_quantized_before_is_still_loaded_by_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real loads, with the bug put back and mended: how many tensors were handed to a pool by each."""
    handed: list[int] = []
    submit = ThreadPoolExecutor.submit

    def counted(pool: ThreadPoolExecutor, /, *args: Any, **kwargs: Any) -> Any:
        handed[-1] += 1
        return submit(pool, *args, **kwargs)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", counted)

    def from_pretrained(folder: Path, **how: object) -> Any:
        handed.append(0)
        return AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"}, **how)

    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, vocab_size=128
    )
    folder = make_checkpoint(config, tmp_path / "plain", tokenizer=False)
    with mended():
        quantized = from_pretrained(folder, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
        from_pretrained(folder)
        quantized.save_pretrained(tmp_path / "quantized")
        from_pretrained(tmp_path / "quantized")
    quantizing, plain, before = handed
    assert quantizing == 0
    assert plain == 12
    assert before > plain
