"""The command ``memleak predict``, in processes of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_memleak.cli.main import main

# Older configs do not know dtype.
transformers: Any = pytest.importorskip("transformers", minversion="4.56")

needs_no_gpu = pytest.mark.skipif(
    bool(torch.accelerator.is_available() or torch.version.hip),
    reason="no card is simulated beside a real one, nor by a torch that is built for ROCm",
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A Llama of 0.4 billion parameters in bf16."""
    transformers.LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=24,
        num_attention_heads=16,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    ).save_pretrained(tmp_path)
    return tmp_path / "config.json"


def predict(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest_memleak", "predict", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@needs_no_gpu
def test_a_forward_pass_fits_and_the_table_says_predicted(config: Path) -> None:
    done = predict(config, "--card", "4G")
    assert done.returncode == 0, done.stderr
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines() if not line.startswith((" ", "alive")))
    assert rows["model"].strip() == "LlamaForCausalLM, 0.374 billion parameters"
    assert rows["weights"].strip() == "714.1 MiB (predicted)"  # 713.1 of them, in blocks
    assert rows["verdict"].strip() == "fits (predicted)"
    assert rows["smallest card"].strip() == "Tesla T4, 14.74 GiB (predicted)"
    assert "(predicted)" in rows["peak"]
    # What goes on is told on stderr, and nothing else is.
    told = [line.split(maxsplit=2)[2] for line in done.stderr.splitlines()]
    assert told[:3] == ["make a sparse checkpoint", "a card of 4 GiB: load", "a card of 4 GiB: forward"]


@needs_no_gpu
def test_an_encoder_with_a_decoder(tmp_path: Path) -> None:
    sizes = {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4, "d_kv": 16, "vocab_size": 200}
    transformers.T5Config(**sizes, decoder_start_token_id=0).save_pretrained(tmp_path)
    done = predict(tmp_path, "--card", "4G", "--seq", "64")
    assert done.returncode == 0, done.stderr
    assert "T5ForConditionalGeneration" in done.stdout
    assert "verdict        fits (predicted)" in done.stdout


@needs_no_gpu
def test_training_that_does_not_fit_says_where_and_what_it_would_take(config: Path) -> None:
    done = predict(config.parent, "--train", "full", "--batch", "2", "--seq", "256", "--card", "2G", "--json")
    assert done.returncode == 1, done.stderr
    data = json.loads(done.stdout)
    weights = data["parameters"] * 2
    assert (data["schema"], data["how"], data["fits"]) == ("pytest-memleak-predict/1", "predicted", False)
    assert data["weights"] == pytest.approx(weights, rel=0.002)
    assert data["refused_in"] == "optimizer of step 1"
    assert "Tried to allocate" in data["refusal"]
    assert 4 * weights < data["allocated_peak"] < 6 * weights
    assert data["allocated_peak"] <= data["reserved_peak"]
    assert sum(one["bytes"] for one in data["at_peak"]) == data["allocated_peak"]
    assert data["smallest_card"]["name"] == "Tesla T4"
    assert [words[:24] for words in data["presumed"]] == ["a load by several thread"]


@needs_no_gpu
def test_four_bits_with_adapters(config: Path) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    done = predict(config, "--quantize", "4bit", "--train", "lora", "--seq", "128", "--card", "rtx3090", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["parameters"] == pytest.approx(374e6, rel=0.01)
    assert 0.5 * data["parameters"] < data["weights"] < 1.2 * data["parameters"]
    assert data["peak_in"].endswith("of step 2")
    assert data["presumed"] == [], "quantizing on the way, this release loads with one thread"
    assert {"adapters", "load"} <= {one["by"] or one["line"] for one in data["at_peak"]}


@needs_no_gpu
def test_eight_bits_say_what_is_presumed_of_outliers(config: Path) -> None:
    pytest.importorskip("bitsandbytes")
    done = predict(config, "--quantize", "8bit", "--seq", "128", "--card", "4G", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["doubt"] is None
    assert data["parameters"] < data["weights"] < 1.2 * data["parameters"]
    assert [words[:24] for words in data["presumed"]] == ["inputs of 8-bit layers w"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.json"], "nowhere.json is not there"),
        (["CONFIG", "--card", "rtx2000"], "card='rtx2000' is neither a size nor a card"),
        (["CONFIG", "--quantize", "4bit", "--train", "full"], "quantized weights take no training; use lora"),
    ],
)
def test_what_cannot_be_told_has_status_2(
    arguments: list[str], message: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["predict", *[str(config) if one == "CONFIG" else one for one in arguments]])
    said = capsys.readouterr()
    assert status == 2
    assert message in said.err
    assert said.out == ""


def test_a_model_that_generates_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers.BertConfig(architectures=["BertForSequenceClassification"]).save_pretrained(tmp_path)
    assert main(["predict", str(tmp_path)]) == 2
    assert "BertForSequenceClassification does not generate text" in capsys.readouterr().err


def test_counts_are_at_least_one(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["predict", str(config), "--batch", "0"])
    assert "'0' is no number of at least 1" in capsys.readouterr().err


@needs_no_gpu
def test_a_run_that_a_library_ends_is_no_answer(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(program: Any, profile: Any) -> None:
        program.stage = "backward of step 1"
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr("pytest_memleak.prediction.predict_on", broken)
    assert main(["predict", str(config)]) == 2
    said = capsys.readouterr()
    assert "the backward of step 1 ended without an answer: RuntimeError: no such kernel\n" in said.err
    assert said.out == ""


@needs_no_gpu
def test_a_card_that_is_too_small_for_transformers_itself(config: Path) -> None:
    done = predict(config, "--card", "1G")
    assert done.returncode == 2
    assert "warmup asks for the card's size less 1.2 GiB at most, and on a card of 1 GiB that is less" in done.stderr
    assert done.stderr.endswith("give a larger --card\n")


@needs_no_gpu
def test_more_positions_than_a_model_has_are_an_error(tmp_path: Path) -> None:
    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 1024}
    transformers.GPT2Config(**sizes, architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path)
    done = predict(tmp_path, "--seq", "4096", "--card", "24G")
    assert done.returncode == 2
    assert "fits" not in done.stdout
    assert "device-side assert triggered: index 4095 is out of bounds for dimension 0 with size 1024" in done.stderr
