"""On the simulated card: what ``memleak predict --train`` says of plans. All of it in one process, which a command of
its own each would take most of its time to start."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pytest_memleak.cli.main import main

transformers: Any = pytest.importorskip("transformers")
ALL_BLOCKS = 6


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Predict = Callable[..., Done]


@pytest.fixture
def predict(capsys: pytest.CaptureFixture[str]) -> Predict:
    def run(*arguments: str | Path) -> Done:
        status = main(["predict", *map(str, arguments)])
        return Done(status, *capsys.readouterr())

    return run


def llama(folder: Path, **others: Any) -> Path:
    """Few blocks, and wide ones: what is simulated takes as long as there are operations."""
    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "vocab_size": 8000}
    config = transformers.LlamaConfig(
        **{**sizes, "num_hidden_layers": ALL_BLOCKS, **others}, architectures=["LlamaForCausalLM"], dtype="bfloat16"
    )
    config.save_pretrained(folder)
    return folder


def rows_of(printed: str) -> dict[str, str]:
    lines = (line.split("  ", 1) for line in printed.splitlines() if not line.startswith((" ", "alive")))
    return {name: text.strip() for name, text in lines}


def test_where_only_a_plan_fits_it_is_told(tmp_path: Path, predict: Predict) -> None:
    done = predict(llama(tmp_path), "--train", "full", "--card", "2G")
    assert done.returncode == 1, done.stderr  # as it is, it does not fit
    rows = rows_of(done.stdout)
    assert rows["verdict"].startswith("does not fit")
    knobs = {name: int(value) for name, value in (one.split("=") for one in rows["its numbers"].split())}
    streamed = ALL_BLOCKS - knobs["n_persist"]
    assert 0 < knobs["n_buffer"] <= streamed
    assert f"of {ALL_BLOCKS} chunks of weights {knobs['n_persist']} on the card, {streamed} streamed" in rows["plan"]
    assert f"of {ALL_BLOCKS} blocks {knobs['n_checkpoint'] or 0} checkpointed" in rows["plan"]
    assert "none is needed" not in rows["plan"]
    assert rows["plan"].endswith("(predicted)")
    assert "(predicted); times 1.1" in rows["its peak"]
    assert rows["its peak"].endswith("it fits into the 2 GiB that can be had")
    assert rows["its step"].endswith("with a text batch (predicted)")
    assert "does not fit: at its peak (" in rows["next plan"]
    assert "it lacks" in rows["next plan"]
    assert rows["speeds"].startswith("presumed, and seconds rest on them: 494 trillion operations/s (50% of an H200's")
    told = [line.rpartition(" s  ")[2] for line in done.stderr.splitlines() if " s  " in line]
    assert told[-3:] == ["plan: load", "plan: profile a step", "plan: search"]


def test_where_training_fits_as_it_is_none_is_needed(tmp_path: Path, predict: Predict) -> None:
    pytest.importorskip("peft")
    done = predict(llama(tmp_path), "--train", "lora", "--card", "rtx3090", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    plan = data["plan"]
    assert plan["n_persist"] == plan["chunks"] == plan["blocks"] == ALL_BLOCKS
    assert [plan[name] for name in ("n_buffer", "n_swap", "n_checkpoint", "n_offload")] == [0, 0, 0, 0]
    assert (plan["needed"], plan["next"], plan["margin"]) == (False, None, 1.1)
    assert (plan["kinds"], plan["guessed"], plan["headroom"]) == (["text"], [], 0)
    assert plan["peak"] == pytest.approx(data["allocated_peak"], rel=0.03)
    assert plan["seconds"] > 0
    assert plan["where"]
    # The card's own context takes a part, and the card's own speed is presumed.
    assert 0 < data["card"]["total"] - plan["capacity"] < 2**30
    assert "35.5 trillion operations/s (50% of its data sheet's), 25 GB/s" in plan["presumed"]
    assert (data["no_plan"], data["least_plan"]) == (None, None)
    assert data["schema"] == "pytest-memleak-predict/1"


def test_where_nothing_fits_it_says_what_would_do(tmp_path: Path, predict: Predict) -> None:
    # Embeddings are in no block: with their gradients and AdamW's state they are on the card always.
    config = llama(tmp_path, vocab_size=128_000, num_hidden_layers=2)
    done = predict(config, "--train", "full", "--card", "2G", "--json")
    assert done.returncode == 1, done.stderr
    data = json.loads(done.stdout)
    least = data["least_plan"]
    assert data["plan"] is None
    assert least["n_persist"] == 0
    assert least["peak"] > 4 * 2 * 128_000 * 1024 * 2
    assert least["needed"] == pytest.approx(1.1 * least["peak"])
    assert least["card"]["name"] == "Tesla T4"
    assert data["no_plan"].startswith("none fits: the smallest one (of 2 blocks ")
    assert "Tesla T4 would do" in data["no_plan"]
    assert least["where"] in data["no_plan"]


def test_four_bit_weights_with_adapters(tmp_path: Path, predict: Predict) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    asked = ("--quantize", "4bit", "--train", "lora", "--seq", "2048", "--card", "2G", "--json")
    done = predict(llama(tmp_path), *asked)
    assert done.returncode == 0, done.stderr  # with PEFT's checkpointing it fits as it is
    plan = json.loads(done.stdout)["plan"]
    assert plan["needed"], "without any checkpointing it does not fit"
    assert plan["n_checkpoint"] + plan["n_offload"] + plan["n_swap"] > 0
    assert 1.1 * plan["peak"] <= plan["capacity"] == 2 * 2**30
    assert plan["next"]["missing"] > 0


def test_an_image_that_needs_more_tokens_says_how_many(tmp_path: Path, predict: Predict) -> None:
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    text = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": rope, "rope_scaling": rope}
    ids = {"image_token_id": 500, "video_token_id": 501, "vision_start_token_id": 502, "vision_end_token_id": 503}
    transformers.Qwen2_5_VLConfig(
        text_config={**text, **heads},
        vision_config={**vision, "patch_size": 14, "fullatt_block_indexes": [1], "window_size": 448},
        **ids,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        dtype="bfloat16",
    ).save_pretrained(tmp_path)
    done = predict(tmp_path, "--train", "full", "--seq", "64", "--card", "8G")
    assert done.returncode == 0, done.stderr
    rows = rows_of(done.stdout)
    assert "steps with image batches are not profiled: they want --seq 1028 at least" in rows["not profiled"]
    assert rows["not profiled"].endswith("4 GiB of the card are left free instead, which is a guess")
    assert "and with 4 GiB left free, it fits into the 8 GiB" in rows["its peak"]
    assert "UserWarning" not in done.stderr
    enough = predict(tmp_path, "--train", "full", "--seq", "1028", "--card", "8G", "--json")
    plan = json.loads(enough.stdout)["plan"]
    assert (plan["kinds"], plan["guessed"], plan["headroom"]) == (["text", "image", "video"], [], 0)


def test_a_model_that_the_planner_refuses_has_the_rest_of_the_answer(tmp_path: Path, predict: Predict) -> None:
    sizes = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 2, "num_heads": 4, "vocab_size": 512}
    transformers.T5Config(
        **sizes, decoder_start_token_id=0, architectures=["T5ForConditionalGeneration"], dtype="bfloat16"
    ).save_pretrained(tmp_path)
    done = predict(tmp_path, "--train", "full", "--seq", "16", "--card", "4G")
    assert done.returncode == 0, done.stderr
    rows = rows_of(done.stdout)
    assert rows["verdict"] == "fits (predicted)"
    assert rows["plan"].startswith("none: no text batch can be made for T5ForConditionalGeneration: it is an encoder")
    assert "its peak" not in rows


def test_nothing_is_planned_where_nothing_is_trained(tmp_path: Path, predict: Predict) -> None:
    done = predict(llama(tmp_path, num_hidden_layers=2), "--card", "4G", "--json")
    data = json.loads(done.stdout)
    assert (data["plan"], data["no_plan"], data["least_plan"]) == (None, None, None)
    assert "plan" not in done.stderr
