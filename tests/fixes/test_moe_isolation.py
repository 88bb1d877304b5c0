"""Loads under the fix `moe_experts` have nothing of each other, and leave nothing behind."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes.nn.parametrize")
pytest.importorskip("transformers.core_model_loading")

from pytest_memleak.fixes.moe_experts import FIX
from tests.conftest import Run
from tests.fixes.moe_models import four_bits, load, qwen3_moe, saved, states


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("qwen3_moe"), qwen3_moe())


_AT_ONCE = """
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from pytest_memleak.fixes.moe_experts import FIX
from tests.fixes.moe_models import four_bits, load, states

ASKED = [("nf4", True), ("fp4", False), ("fp4", True), ("nf4", False)]


def test_loads_with_other_settings_do_not_mix():
    together = threading.Barrier(len(ASKED), timeout=120)

    def one(quant_type, nested):
        return load(Path(FOLDER), four_bits(bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=nested))

    def one_of_all(quant_type, nested):
        together.wait()
        return one(quant_type, nested)

    with FIX.fixed():
        one_after_the_other = [one(*settings) for settings in ASKED]
        with ThreadPoolExecutor(len(ASKED)) as threads:
            at_once = list(threads.map(lambda settings: one_of_all(*settings), ASKED))
    for models in (one_after_the_other, at_once):
        found = [{(state.quant_type, state.nested) for state in states(model).values()} for model in models]
        assert found == [{settings} for settings in ASKED]
    for model, alone in zip(at_once, one_after_the_other, strict=True):
        same = states(alone)
        assert all(torch.equal(state.code, same[name].code) for name, state in states(model).items())
"""


def test_loads_with_other_settings_do_not_mix(folder: Path, run_apart: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: each load replaces functions of torch and transformers for the whole process and puts
    back what it found, and that may be what another load had put there."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    run_apart(_AT_ONCE.replace("FOLDER", repr(str(folder)))).assert_outcomes(passed=1)


def test_after_the_fix_loads_are_as_they_were(folder: Path) -> None:
    with FIX.fixed():
        pass
    assert states(load(folder, four_bits())) == {}


def test_a_load_that_fails_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_memleak.fixes import _moe_patches

    def fails(*given: object, **how: object) -> None:
        raise OSError("no such expert")

    with FIX.fixed():
        with monkeypatch.context() as patch:
            patch.setattr(_moe_patches, "packed", fails)
            with pytest.raises(OSError, match="no such expert"):
                load(folder, four_bits())
        assert states(load(folder)) == {}
        assert len(states(load(folder, four_bits()))) == 4


def test_nothing_holds_a_model_that_is_gone(folder: Path) -> None:
    with FIX.fixed():
        model = load(folder, four_bits())
        held = [weakref.ref(module) for module in model.modules()]
        del model
        gc.collect()
        assert not [one for one in held if one() is not None]
