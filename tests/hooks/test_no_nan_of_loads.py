"""`no_nan` of models that transformers loads: dropped, wrapped, mended later; and on a simulated card."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import Records, Run

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="a simulated card is a part of it")

LOAD = """
import pytest, torch

def load(checkpoint):
    from transformers import AutoModelForCausalLM, LlamaConfig
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=1, intermediate_size=128, num_attention_heads=4, vocab_size=8000
    )
    return AutoModelForCausalLM.from_pretrained(checkpoint(config, dtype="float32"))

def spoil(model):
    model.lm_head.weight.data = torch.empty_like(model.lm_head.weight)
"""


def test_a_loaded_model(run_apart: Run, records: Records) -> None:
    result = run_apart(
        LOAD
        + """
@pytest.mark.no_nan
def test_fine(checkpoint):
    model = load(checkpoint)

@pytest.mark.no_nan
def test_dropped(checkpoint):
    model = load(checkpoint)
    spoil(model)
    del model
    torch.nn.Linear(2, 2)

@pytest.mark.no_nan
def test_wrapped(checkpoint):
    model = load(checkpoint)
    wrapper = torch.nn.Sequential(model)
    spoil(model)

@pytest.mark.no_nan
def test_spoilt_without_its_wrapper(checkpoint):
    model = load(checkpoint)
    wrapper = torch.nn.Sequential(model)
    del wrapper
    spoil(model)

@pytest.mark.no_nan
def test_mended_in_its_wrapper(checkpoint):
    model = load(checkpoint)
    spoil(model)
    wrapper = torch.nn.Sequential(model)
    torch.nn.init.zeros_(model.lm_head.weight)

@pytest.mark.no_nan
def test_its_end_is_not_seen(checkpoint, monkeypatch):
    from transformers import LlamaForCausalLM

    spoilt = LlamaForCausalLM.tie_weights
    def tie_weights(model, *args, **kwargs):
        spoilt(model, *args, **kwargs)
        if model.lm_head.weight.device.type != "meta":
            spoil(model)
    monkeypatch.setattr(LlamaForCausalLM, "tie_weights", tie_weights)
    monkeypatch.setattr(LlamaForCausalLM, "__del__", lambda model: None, raising=False)
    load(checkpoint)

@pytest.mark.no_nan(gradients=True)
def test_trained(checkpoint):
    model = load(checkpoint)
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.arange(9)[None]
    model(ids, labels=ids).loss.backward()
    optimizer.step()

@pytest.mark.gpu_cap("1G")
@pytest.mark.no_nan
def test_on_a_simulated_card(checkpoint):
    model = load(checkpoint).to("cuda")

@pytest.mark.gpu_cap("1G")
@pytest.mark.no_nan
def test_known_all_the_same(checkpoint):
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.zeros(3, device="cuda"))
""",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=4, failed=4, errors=1)
    told = {name: one["results"][-1] for name, one in records().items()}
    assert {name: one["verdict"] for name, one in told.items()} == {
        "test_fine": "pass",
        "test_dropped": "fail",
        "test_wrapped": "fail",
        "test_spoilt_without_its_wrapper": "fail",
        "test_mended_in_its_wrapper": "pass",
        "test_its_end_is_not_seen": "fail",
        "test_trained": "pass",
        "test_on_a_simulated_card": "inconclusive",
        "test_known_all_the_same": "pass",
    }
    for name, tensor in (("test_dropped", "lm_head.weight"), ("test_wrapped", "0.lm_head.weight")):
        message = f"no_nan FAILED: {tensor}: 100 % of 512,000 values are NaN, the first at [0, 0] (measured)"
        assert told[name]["message"] == message
    assert "when its load returned" in str(told["test_its_end_is_not_seen"]["details"])
    simulated = told["test_on_a_simulated_card"]
    assert "a simulation knows sizes, and not these values" in simulated["message"]
    assert "--gpu-backend=cpu" in simulated["advice"]
    assert told["test_known_all_the_same"]["how"] == "predicted"


def test_poison_takes_nothing_of_a_simulated_card(run_apart: Run, records: Records) -> None:
    result = run_apart(
        LOAD
        + """
def work(checkpoint):
    model = load(checkpoint).to("cuda")
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.arange(9, device="cuda")[None]
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    torch.empty(1 << 20, device="cuda").resize_(1 << 21)

@pytest.mark.gpu_cap("4G")
@pytest.mark.max_peak("4GiB", of="requested")
def test_warm_up(checkpoint):
    work(checkpoint)

@pytest.mark.gpu_cap("4G")
@pytest.mark.max_peak("4GiB", of="requested")
def test_plain(checkpoint):
    work(checkpoint)

@pytest.mark.gpu_cap("4G")
@pytest.mark.max_peak("4GiB", of="requested")
@pytest.mark.max_host_peak("4GiB")
@pytest.mark.no_nan
def test_poisoned(checkpoint):
    work(checkpoint)
""",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=2, errors=1)
    told = records()
    peaks = {name: one["results"][0]["measured"] for name, one in told.items()}
    assert peaks["test_poisoned"] == peaks["test_plain"] > 1 << 22
    assert not any("ran twice" in note for note in told["test_poisoned"]["notes"])  # nothing is committed there
