"""Loads under the fix `moe_experts` have nothing of each other, and leave nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes.nn.parametrize")
pytest.importorskip("transformers.core_model_loading")

from pytest_memleak.fixes.moe_experts import FIX  # noqa: E402
from tests.fixes.moe_models import four_bits, load, qwen3_moe, saved, states  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("qwen3_moe"), qwen3_moe())


@pytest.fixture
def default_dtype() -> Iterator[None]:
    """Loads in several threads leave another one: each sets it for the whole process, and puts back what it found."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("default_dtype")
def test_loads_with_other_settings_do_not_mix(folder: Path) -> None:
    asked = [("nf4", True), ("fp4", False), ("fp4", True), ("nf4", False)]
    together = threading.Barrier(len(asked), timeout=120)

    def one(quant_type: str, nested: bool) -> Any:
        together.wait()
        return load(folder, four_bits(bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=nested))

    with FIX.fixed():
        one_after_the_other = [
            load(folder, four_bits(bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=nested))
            for quant_type, nested in asked
        ]
        with ThreadPoolExecutor(len(asked)) as threads:
            at_once = list(threads.map(lambda settings: one(*settings), asked))
    for models in (one_after_the_other, at_once):
        found = [{(state.quant_type, state.nested) for state in states(model).values()} for model in models]
        assert found == [{settings} for settings in asked]
    for model, alone in zip(at_once, one_after_the_other, strict=True):
        same = states(alone)
        assert all(torch.equal(state.code, same[name].code) for name, state in states(model).items())


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
