"""Mixtures of real size loaded in 4 bits on cards of 16 and 24 GiB, as upstream is and with the fix moe_experts.

    python benchmarks/moe_sizes.py                              # Qwen3-30B-A3B and GPT-OSS-20B
    python benchmarks/moe_sizes.py --model gpt-oss-20b --card 16G

No GPU is needed: each load runs on a simulated card in a process of its own, from a checkpoint of holes, and each
figure is a prediction for the releases that are installed. One that does not fit is told on a card on which it does.
With --train three steps of LoRA on the attention follow, of 512 tokens each, with checkpointing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.real_sizes import gpt_oss_20b, qwen3_30b_a3b

GB = 1e9
SEED = "reported for GPT-OSS-20B in 4 bits, under 16 GB: 11.85 GB reserved after the load, 12.93 GB at the peak"
LARGE = "140G"
"""On this one everything fits."""


MODELS = {"qwen3-30b-a3b": qwen3_30b_a3b, "gpt-oss-20b": gpt_oss_20b}


def train_lora(model: Any, device: str) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    model = get_peft_model(model, LoraConfig(r=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    model.train()  # or nothing is checkpointed
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad])
    tokens = torch.arange(512, device=device)[None]
    for _ in range(3):
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model


def load(model: str, card: str, fixed: bool, folder: Path, train: bool) -> dict[str, Any]:
    """One load, in this process."""
    warnings.simplefilter("ignore")
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    import pytest_memleak
    from pytest_memleak import fixes

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )

    def program(given: Any) -> Any:
        loaded = AutoModelForCausalLM.from_pretrained(
            folder / model, dtype=torch.bfloat16, quantization_config=config, device_map={"": given.device}
        )
        return train_lora(loaded, given.device) if train else loaded

    begun = time.perf_counter()
    with fixes.apply("moe_experts") if fixed else contextlib.nullcontext():
        found = pytest_memleak.predict(program, card=card)
    return {
        "fits": found.fits,
        "doubt": found.doubt,
        "held": found.allocated,
        "peak": found.allocated_peak,
        "reserved": found.reserved,
        "reserved_peak": found.reserved_peak,
        "refusal": found.refusal,
        "seconds": time.perf_counter() - begun,
    }


def in_a_process(model: str, card: str, fixed: bool, folder: Path, train: bool) -> dict[str, Any]:
    call = [sys.executable, __file__, "--folder", str(folder), "--one", model, card, "fixed" if fixed else "as-it-is"]
    call += ["--train"] if train else []
    done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found["doubt"]:
        raise SystemExit(f"{model} on {card}: {found['doubt']}")
    return found


def make(model: str, folder: Path) -> float:
    from pytest_memleak.upstream.checkpoints import make_checkpoint

    (folder / model).mkdir()
    make_checkpoint(MODELS[model](), folder / model, sparse=True)
    return sum(file.stat().st_size for file in (folder / model).glob("*.safetensors")) / GB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, action="append", help="default: both")
    parser.add_argument("--card", action="append", help="default: 16G and 24G")
    parser.add_argument("--train", action="store_true", help="and take three steps of LoRA")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        model, card, how = given.one
        print(json.dumps(load(model, card, how == "fixed", given.folder, given.train)))
        return
    versions = ", ".join(
        f"{one} {importlib.metadata.version(one)}" for one in ("transformers", "bitsandbytes", "torch")
    )
    print(f"{versions}; {SEED}\n")
    print("| model | bf16, GB | moe_experts | card | fits | held, GB | peak, GB | reserved at the peak, GB | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for model in given.model or MODELS:
            size = make(model, Path(folder))
            for fixed in (False, True):
                fits_all = in_a_process(model, LARGE, fixed, Path(folder), given.train)
                for card in given.card or ("16G", "24G"):
                    found = in_a_process(model, card, fixed, Path(folder), given.train)
                    told = found if found["fits"] else fits_all
                    figures = (f"{told[name] / GB:.2f}" for name in ("held", "peak", "reserved_peak"))
                    fits = "yes" if found["fits"] else "no"
                    how = "with" if fixed else "without"
                    row = [model, f"{size:.1f}", how, card, fits, *figures, f"{found['seconds']:.0f}"]
                    print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
