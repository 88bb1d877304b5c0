"""What a rank that waits for rank 0's weights has after its load: with the fix, with each bug, and with both.

transformers takes a process for such a rank by its environment, so that one is enough for loads. What accelerate makes
of them takes two.
"""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_memleak import fixes
from pytest_memleak.cases import fsdp_loads
from pytest_memleak.fixes.fsdp_init import FIX
from pytest_memleak.meters.host import HostMemory
from pytest_memleak.upstream.patches import Unrecognised

pytest.importorskip("accelerate")
transformers: Any = pytest.importorskip("transformers")
modeling: Any = importlib.import_module("transformers.modeling_utils")
fsdp_utils: Any = importlib.import_module("accelerate.utils.fsdp_utils")
fsdp_rank: Any = importlib.import_module("benchmarks.fsdp_rank")  # as loose as a script

from tests.fixes.fsdp_waiting import TINY, all_on_meta, saved

MIDDLE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
"""100 MiB in fp16."""
STEPS = (
    "_load_pretrained_model",
    "tie_weights",
    "_move_missing_keys_from_meta_to_device",
    "_move_missing_keys_from_meta_to_cpu",
    "_initialize_missing_keys",
)


def patched() -> list[Any]:
    base = vars(modeling.PreTrainedModel)
    accelerator = importlib.import_module("accelerate.accelerator").Accelerator
    return [*(base.get(step) for step in STEPS), fsdp_utils.fsdp2_load_full_state_dict, accelerator._prepare_fsdp2]


@pytest.fixture(autouse=True)
def puts_back_what_it_found() -> Iterator[None]:
    before = patched()
    yield
    assert all(now is then for now, then in zip(patched(), before, strict=True))


@pytest.fixture(scope="module")
def middle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("middle"), MIDDLE)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_parameters_stay_on_meta_whatever_type_is_asked_for(waiting: None, tiny: Path, dtype: str) -> None:
    with FIX.fixed():
        model = fsdp_loads.load(tiny, dtype)
    assert all_on_meta(model)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert fsdp_rank.census(model)["rotary is right"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_they_commit_nothing(waiting: None, middle: Path, dtype: str) -> None:
    fsdp_loads.load(middle)  # what loads import
    with FIX.fixed():
        peak, size = committed_by_a_load(middle, dtype)
    assert peak <= 0.05 * size


@pytest.mark.parametrize("bug", ["zeros_like", "reinit"])
def test_bugs_that_commit_the_model(waiting: None, middle: Path, bug: str) -> None:
    with FIX.bug(bug):
        peak, size = committed_by_a_load(middle, "float16")
        assert peak >= 0.95 * size
        with FIX.fixed():
            peak, size = committed_by_a_load(middle, "float16")
            assert peak <= 0.05 * size


def committed_by_a_load(folder: Path, dtype: str) -> tuple[int, int]:
    gauge = HostMemory()
    gauge.begin()
    gauge.take_peaks()
    start = gauge.now()["committed"]
    model = fsdp_loads.load(folder, dtype)
    peak = gauge.take_peaks()["committed"]
    gauge.end()
    return peak - start, fsdp_rank.census(model)["bytes"]


@pytest.fixture
def poison() -> Iterator[None]:
    """Memory that nobody has written to reads as NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


def test_the_bug_that_leaves_nan(waiting: None, poison: None, tiny: Path) -> None:
    with FIX.bug("empty_like"):
        assert fsdp_rank.census(fsdp_loads.load(tiny))["nan"] == 1
        with FIX.fixed():
            assert all_on_meta(fsdp_loads.load(tiny))


def test_the_bugs_that_leave_none(waiting: None, poison: None, tiny: Path) -> None:
    with FIX.bug("zeros_like"):
        assert not any(parameter.any() for parameter in fsdp_loads.load(tiny).parameters())
    with FIX.bug("reinit"):
        model = fsdp_loads.load(tiny)
    stored = modeling.load_state_dict(str(tiny / "model.safetensors"))
    weight = model.model.layers[0].mlp.up_proj.weight
    assert 0 < float(weight.detach().float().std()) < 1
    assert not torch.equal(weight, stored["model.layers.0.mlp.up_proj.weight"])


def test_rank_0_loads_as_ever(waiting: None, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    for enter in (FIX.fixed, FIX.bug):
        with enter():
            model = fsdp_loads.load(tiny)
        stored = modeling.load_state_dict(str(tiny / "model.safetensors"))
        assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())


def test_without_fsdp_loads_are_as_ever(waiting: None, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    with FIX.fixed():
        assert not any(parameter.is_meta for parameter in fsdp_loads.load(tiny).parameters())


@pytest.mark.parametrize("change", [{"hf_quantizer": object()}, {"device_mesh": object()}])
def test_loads_of_another_kind_are_left_to_upstream(
    waiting: None, tiny: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    seen: list[dict[str, Any]] = []
    step = next(step for step in STEPS[2:] if hasattr(modeling.PreTrainedModel, step))

    def move(self: Any, missing_keys: Any, device_map: Any, device_mesh: Any, hf_quantizer: Any) -> None:
        seen.append({"hf_quantizer": hf_quantizer, "device_mesh": device_mesh})

    model = transformers.LlamaForCausalLM(fsdp_loads.config(**TINY))
    given: dict[str, Any] = {"missing_keys": set(), "device_map": None, "device_mesh": None, "hf_quantizer": None}
    with monkeypatch.context() as patch:
        patch.setattr(modeling.PreTrainedModel, step, move)
        with FIX.fixed():
            getattr(model, step)(**{**given, **change})
            assert [{**seen[0], **change}] == seen
            getattr(model, step)(**given)
    assert len(seen) == 1
    assert all_on_meta(model)


def test_a_buffer_of_the_outermost_module_is_computed(waiting: None, tiny: Path) -> None:
    class WithBuffer(transformers.LlamaForCausalLM):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.register_buffer("seven", torch.full((3,), 7.0), persistent=False)

        def _init_weights(self, module: Any) -> None:
            super()._init_weights(module)
            if module is self:
                self.seven.fill_(7.0)

    with FIX.fixed():
        model = fsdp_loads.load(tiny, kind=WithBuffer)
    assert model.seven.tolist() == [7.0, 7.0, 7.0]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
def test_with_other_fixes_in_any_order(waiting: None, tiny: Path, order: tuple[int, ...]) -> None:
    entered = [FIX.fixed(), fixes.find("four_bit_load").fixed(), fixes.find("warmup_guard").fixed(), FIX.fixed()]
    for place in order:
        entered[place].__enter__()
    assert all_on_meta(fsdp_loads.load(tiny))
    for place in sorted(order, key=lambda place: (place * 3) % 4):
        entered[place].__exit__(None, None, None)
    assert not any(parameter.is_meta for parameter in fsdp_loads.load(tiny).parameters())


def test_a_load_that_fails_leaves_nothing_behind(waiting: None, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no checkpoint")
    with FIX.fixed():
        with pytest.raises(Exception, match=r"(?i)header|deserializ"):
            fsdp_loads.load(tmp_path)
        assert all_on_meta(fsdp_loads.load(tiny))


def test_an_upstream_that_is_not_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = r"fsdp_init does not recognise transformers \S+, accelerate \S+, and left it as it is: "
    with monkeypatch.context() as patch:
        patch.delattr(modeling, "is_fsdp_enabled")
        for enter in (FIX.fixed, FIX.bug):
            with pytest.raises(Unrecognised, match=refused + r".*has no is_fsdp_enabled"), enter():
                pass
    with monkeypatch.context() as patch:
        patch.setattr(modeling, "load_state_dict", lambda checkpoint_file: {})
        if hasattr(modeling, "LoadStateDictConfig"):
            with pytest.raises(Unrecognised, match=refused + "load_state_dict of .* no map_location"), FIX.fixed():
                pass
    with monkeypatch.context() as patch:
        patch.setattr(fsdp_utils, "fsdp2_load_full_state_dict", lambda accelerator, model, weights: None)
        with pytest.raises(Unrecognised, match=refused + r".*has no parameter full_sd"), FIX.fixed():
            pass
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module("accelerate"), "__version__", "1.7.0")
        with pytest.raises(Unrecognised, match=refused + "prepare of accelerate before 1.8"), FIX.fixed():
            pass


def test_what_it_says() -> None:
    with FIX.fixed() as applied:
        assert re.match(
            r"fsdp_init: patched PreTrainedModel\.\w+, .*fsdp2_load_full_state_dict, Accelerator\._prepare_fsdp2 \(",
            str(applied),
        )


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a persistent buffer."""
    return saved(tmp_path_factory.mktemp("scaled"), TINY, fsdp_loads.scaled_llama())


def test_two_ranks_prepare(tiny: Path, scaled: Path, tmp_path: Path) -> None:
    tied = saved(tmp_path / "tied", TINY, tied=True)
    load = fsdp_rank.Load
    loads = [
        load(str(scaled), scaled=True, prepare=True),
        load(str(scaled), scaled=True, prepare=True, fix=True),
        load(str(tiny), scaled=True, prepare=True, fix=True, poison=True),  # the buffer is not in the checkpoint
        load(str(tiny), "bfloat16", prepare=True, fix=True, mixed_precision="bf16"),
        load(str(tied), prepare=True, fix=True, bug="empty_like", others=("four_bit_load", "warmup_guard")),
    ]
    crashed, *prepared = fsdp_rank.run(loads, tmp_path)
    assert [rank["error"] for rank in crashed] == ["'Tensor' object has no attribute 'device_mesh'"] * 2
    for first, second in prepared:
        assert (first["meta"], second["meta"]) == (0, 1)
        for rank in (first, second):
            assert rank["kind"].startswith("FSDP")
            assert rank["wrong weights"] == 0
            assert rank["off by"] == 0
            assert rank["ranks agree"]
            assert rank["rotary is right"]
            assert rank["optimized"] == 1
            assert rank.get("buffer is rank 0's", True)
