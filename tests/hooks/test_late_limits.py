"""Limits that have a value when a load has returned: who held what is looked at on the way all the same."""

from __future__ import annotations

import pytest

from pytest_memleak.meters import shared
from tests.conftest import Records, Run

pytest.importorskip("transformers", minversion="5.0")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.skipif(not shared.cpu_recordings(), reason="only the exact engine records CPU tensors")


@pytest.fixture(autouse=True)
def time_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_EACH", "_ALL"):
        monkeypatch.setattr(f"pytest_memleak.hooks.explaining.{name}", 600.0)


LOAD = """
import pytest, torch, transformers

CONFIG = transformers.LlamaConfig(
    vocab_size=1024, hidden_size=512, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=8
)
SOURCES = []

@pytest.fixture(scope="module")
def folder(checkpoint):
    return checkpoint(CONFIG, dtype="float32")

def load(folder):
    # In another dtype: what stays in the mapped file is not allocated.
    return transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float16)
"""


@pytest.mark.parametrize("limit", ["0.75 * fp16_size", "0.9 * final_size", "final_size + largest_param / 4"])
def test_a_load_that_breaks_it_is_looked_at(run_on_cpu: Run, records: Records, limit: str) -> None:
    keeping = """
    @pytest.fixture
    def kept(monkeypatch):
        from transformers import core_model_loading

        def materialize(tensor, *args, **options):
            SOURCES.append(found(tensor, *args, **options))
            return SOURCES[-1].clone()

        found = core_model_loading._materialize_copy
        monkeypatch.setattr(core_model_loading, "_materialize_copy", materialize)
    """
    test = f"""
    @pytest.mark.max_peak("{limit}")
    def test_it(kept, folder):
        load(folder)
    """
    result = run_on_cpu("\n".join([LOAD, *(_dedented(part) for part in (keeping, test))]), "--memleak-json=out.json")
    result.assert_outcomes(failed=1)
    (check,) = records()["test_it"]["results"]
    (looked,) = [line for line in check["explanation"] if " allocated, " in line]
    assert "who held it then:" in looked
    assert any("test_it.SOURCES[" in line for line in check["explanation"]), check["explanation"]


def test_a_load_that_keeps_it_is_not(run_on_cpu: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look takes a second: nobody is to pay for it whose promise holds."""
    looks = []
    monkeypatch.setattr("pytest_memleak.hooks.explaining.look", lambda *args: looks.append(args))
    result = run_on_cpu(
        LOAD
        + _dedented("""
    @pytest.fixture
    def model(folder):
        return load(folder)

    @pytest.mark.max_peak("final_size + largest_param")
    def test_in_its_body(folder):
        load(folder)

    @pytest.mark.max_peak("1.5 * fp16_size", model="fixture:model")
    def test_in_a_fixture(model):
        pass
    """)
    )
    result.assert_outcomes(passed=2)
    assert looks == []


def test_a_named_fixture_is_looked_at_while_it_is_loaded(run_on_cpu: Run, records: Records) -> None:
    result = run_on_cpu(
        LOAD
        + _dedented("""
    @pytest.fixture
    def model(folder):
        return load(folder)

    @pytest.mark.max_peak("0.5 * fp16_size", model="fixture:model")
    def test_it(model):
        pass
    """),
        "--memleak-json=out.json",
    )
    result.assert_outcomes(failed=1)
    (check,) = records()["test_it"]["results"]
    assert any("who held it then:" in line for line in check["explanation"]), check["explanation"]


def _dedented(text: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in text.splitlines()) + "\n"
