"""Tests that read values which the simulated card does not have: what they only log is noted, what they go by is an
error that names the line. Each run in its own process, as in test_simulated_card.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.conftest import Records

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a card of its own")

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run_apart(pytester: pytest.Pytester) -> Run:
    def run_text(text: str, *args: str) -> pytest.RunResult:
        pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
        pytester.makepyfile(test_it=text)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", "--memleak-json=out.json", *args)

    return run_text


READ = """
import json
import pytest, torch

def weights(device="cuda"):
    return torch.nn.Linear(1024, 1024, device=device)

def loss():
    return weights()(torch.randn(8, 1024, device="cuda")).square().mean()

def test_passes_by_a_number():
    assert loss().item() < 5

def test_fails_by_a_number():
    assert loss().item() > 5

def test_goes_by_a_copy():
    assert loss().cpu() < 3

def test_goes_by_its_mean():
    losses = [loss().item() for _ in range(3)]
    if round(sum(losses) / 3, 2) > 0.5:
        pass

def test_compares_results():
    torch.testing.assert_close(weights().weight[0].cpu(), torch.zeros(1024))

def test_compares_them_all():
    assert torch.allclose(weights().weight[0].cpu(), torch.zeros(1024), atol=10)

@pytest.mark.max_peak("1GiB")
def test_peak_may_be_another():
    if loss().item() < 5:
        torch.empty(2**20, device="cuda")

@pytest.mark.max_peak("1GiB")
def test_logs(tmp_path):
    losses = [loss().item(), loss().detach().cpu()]
    print(f"{losses[0]:.3f} {losses[1]:.3f}", losses)
    (tmp_path / "log.json").write_text(json.dumps({"loss": round(sum(losses[:1]) / 2, 4)}, indent=2))

@pytest.mark.max_peak("1GiB")
def test_copies_integers_that_nobody_reads():
    (weights().weight > 0).sum().cpu() + 1

@pytest.mark.max_peak("1GiB")
def test_lets_go():
    if float(loss().detach()) > 5:
        torch.empty(2**20, device="cuda")

@pytest.mark.max_peak("1GiB")
def test_counts_for_real():
    ids = torch.arange(12, device="cuda").reshape(3, 4)
    assert ids.sum().item() == 66 and ids.cpu()[1].tolist() == [4, 5, 6, 7]
    torch.testing.assert_close((ids * 2).cpu(), torch.arange(0, 24, 2).reshape(3, 4))
    assert ids.float().mean().item() == 5.5
"""
DOUBTFUL = {
    "test_passes_by_a_number": ("assert loss().item() < 5", "a number that was read, < 5"),
    "test_fails_by_a_number": ("assert loss().item() > 5", "a number that was read, > 5"),
    "test_goes_by_a_copy": ("assert loss().cpu() < 3", "Bool []"),
    "test_goes_by_its_mean": ("if round(sum(losses) / 3, 2) > 0.5:", "a number that was read, > 0.5"),
    "test_compares_results": ("torch.testing.assert_close(weights().weight[0].cpu()", "Bool []"),
    "test_compares_them_all": ("assert torch.allclose(weights()", "allclose of Float [1024]"),
    "test_peak_may_be_another": ("    if loss().item() < 5:", "a number that was read, < 5"),
}


@pytest.mark.parametrize("option", ["--gpu-backend=simulated", "--gpu-cap=2G"])
def test_what_is_gone_by_is_inconclusive_and_names_the_line(run_apart: Run, records: Records, option: str) -> None:
    result = run_apart(READ, option)
    told = records()
    lines = READ.strip("\n").splitlines()
    for name, (line, why) in DOUBTFUL.items():
        assert told[name]["verdict"] == "inconclusive", name
        number = next(number for number, text in enumerate(lines, 1) if line in text)
        assert f"at test_it.py:{number} ({why}" in told[name]["results"][0]["message"]
    result.stdout.fnmatch_lines(
        ["1 test let unknown values become ordinary numbers: its branches are not followed", "  (-v names *"]
    )
    certain = {"test_lets_go", "test_logs", "test_copies_integers_that_nobody_reads", "test_counts_for_real"}
    assert {told[name]["verdict"] for name in certain} == {"pass"}
    (note,) = told["test_logs"]["notes"]
    assert note.startswith("2 values that were read and that nobody knows: placeholders (1.0 each), at test_it.py:")
    assert not told["test_counts_for_real"]["notes"]
    assert (result.parseoutcomes()["errors"], result.ret) == (len(DOUBTFUL), 1)


REPORTED = """
import torch

def test_fails_by_an_unknown_number():
    assert torch.nn.Linear(1024, 1024, device="cuda")(torch.randn(8, 1024, device="cuda")).mean().item() > 5

def test_runs_out_of_memory():
    kept = torch.empty(1500 * 1024**2, dtype=torch.uint8, device="cuda")
    kept.clone()

def test_fails_by_itself():
    assert not torch.ones(4, device="cuda").numel()
"""


def test_in_report_mode_a_failure_stands_and_is_told_what_may_be_its_reason(run_apart: Run, records: Records) -> None:
    result = run_apart(REPORTED, "--gpu-backend=simulated", "--gpu-cap=2G", "--memleak-mode=report")
    result.assert_outcomes(failed=3)
    told = {name: [(one["check"], one["verdict"]) for one in test["results"]] for name, test in records().items()}
    assert told["test_fails_by_an_unknown_number"] == [("simulation", "inconclusive")]
    assert told["test_runs_out_of_memory"] == [("gpu_cap", "fail")]
    result.stdout.fnmatch_lines(
        [
            "simulation INCONCLUSIVE: the program went by a value that the simulated card does not have, at *:4 *",
            "gpu_cap FAILED: out of memory under the cap of 2 GiB *",
            "*local 'kept'*",
        ]
    )
    assert result.stdout.str().count("- memleak -") == 2


TRAIN = """
import torch
import pytest

IDS = torch.randint(1, 3000, (24, 64), generator=torch.Generator().manual_seed(0))

def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=3000, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config)

def trained(model, folder, **options):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        folder,
        max_steps=3,
        per_device_train_batch_size=8,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        **options,
    )
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    training = Trainer(model=model, args=arguments, train_dataset=rows)
    training.train()
    assert len([entry for entry in training.state.log_history if "loss" in entry and "grad_norm" in entry]) == 3
    training.save_state()
    return training

@pytest.mark.max_peak("1GiB")
@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"fp16": True}], ids=["fp32", "bf16", "fp16"])
def test_trainer(tmp_path, options):
    trained(model(), tmp_path, **options).save_model(tmp_path / "model")

@pytest.mark.max_peak("1GiB")
def test_lora(tmp_path):
    peft = pytest.importorskip("peft")
    adapters = peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    trained(peft.get_peft_model(model(), adapters), tmp_path)

@pytest.mark.max_peak("1GiB")
def test_accelerate():
    from accelerate import Accelerator

    accelerator = Accelerator()
    mine = model()
    mine, optimizer, batches = accelerator.prepare(
        mine, torch.optim.AdamW(mine.parameters()), torch.utils.data.DataLoader(IDS, batch_size=8)
    )
    losses = []
    for batch in batches:
        loss = mine(input_ids=batch, labels=batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(mine.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.gather(loss.detach()).mean().item())
    print(f"{sum(losses) / len(losses):.3f}")

def test_best_of_two(tmp_path):
    history = trained(model(), tmp_path).state.log_history
    if history[0]["loss"] > history[1]["loss"]:
        pass
"""


def test_training_loops_are_conclusive(run_apart: Run, records: Records) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    run_apart(TRAIN, "--gpu-backend=simulated")
    told = records()
    for name in ("test_trainer[fp32]", "test_trainer[bf16]", "test_trainer[fp16]", "test_lora", "test_accelerate"):
        assert told[name]["verdict"] == "pass", told[name]
        assert "placeholders (1.0 each)" in told[name]["notes"][0]
    assert told["test_best_of_two"]["verdict"] == "inconclusive"
