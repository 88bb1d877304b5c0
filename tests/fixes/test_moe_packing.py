"""One expert tensor made of pieces: what does not make it up is refused, and its bytes are counted as they are."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes.nn.parametrize")
pytest.importorskip("transformers.core_model_loading")

from pytest_memleak.budget.weights import held_bytes
from pytest_memleak.fixes._moe_packing import packed
from pytest_memleak.fixes._moe_settings import Settings
from pytest_memleak.fixes.moe_experts import quantize_experts
from tests.fixes.moe_models import four_bits, gpt_oss, load, saved

SETTINGS = Settings("nf4", nested=False, blocksize=64, compute_dtype=None, skipped=())


def some(count: int, dtype: Any = torch.bfloat16) -> Any:
    return torch.linspace(-1, 1, count, dtype=dtype)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((96, 160), "96"),
        ((128, 192), "192.* after 128 of "),
        ((128, 64), "192 of 256 values came"),
        ((), "no piece came"),
    ],
    ids=["one ends within a block", "too much", "too little", "nothing"],
)
def test_pieces_that_do_not_make_up_the_tensor(sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        packed(map(some, sizes), torch.Size([4, 8, 8]), SETTINGS)


def test_pieces_of_two_types() -> None:
    pieces = [some(128), some(128, torch.float16)]
    with pytest.raises(AssertionError, match=r"torch.float16 after 128 of \(4, 8, 8\)"):
        packed(iter(pieces), torch.Size([4, 8, 8]), SETTINGS)


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
def test_the_bytes_that_are_told_are_those_of_the_model(tmp_path: Path, nested: bool) -> None:
    model = load(saved(tmp_path, gpt_oss()), four_bits(bnb_4bit_use_double_quant=nested))
    before = held_bytes(model)
    outcome = quantize_experts(model)
    assert outcome.before == sum(2 * 4 * 64 * width for width in (64, 32) for _ in range(2))
    assert outcome.saved == before - held_bytes(model)


def test_what_is_installed_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read from a file each time: for each tensor of a model that would be a part of a load's time."""
    model = load(saved(tmp_path, gpt_oss()), four_bits())
    asked: list[str] = []
    found = metadata.version

    def version(name: str) -> str:
        asked.append(name)
        return found(name)

    monkeypatch.setattr(metadata, "version", version)
    assert len(quantize_experts(model).names) == 4
    assert asked.count("bitsandbytes") == 1
