"""What experts in 4 bits take, and how near a mixture is to itself with them: the figures of docs/moe-experts.md.

    python benchmarks/moe_experts.py values         # on the CPU: bytes, and logits with and without
    python benchmarks/moe_experts.py strategies     # predicted: peaks of ways to get there

Needs no card, and the second no memory to speak of. Qwen3-MoE, Mixtral and GPT-OSS with 32 experts in each of 4 layers
(hidden size 512, experts 256 wide, bf16); of models of real size tells moe_sizes.py.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}

import torch

from pytest_memleak.budget.weights import held_bytes
from pytest_memleak.cases.moe_loads import gpt_oss, mixtral, qwen3_moe
from pytest_memleak.fixes.moe_experts import FIX, quantize_experts
from pytest_memleak.prediction import Prediction, predict
from pytest_memleak.upstream.checkpoints import make_checkpoint
from pytest_memleak.upstream.experts import expert_parameters

SMALL = {"Qwen3-MoE": qwen3_moe, "Mixtral": mixtral, "GPT-OSS": gpt_oss}


def load(folder: Path, device: str, four_bits: bool = True) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how: dict[str, Any] = {}
    if four_bits:
        how["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16, device_map={"": device}, **how)


def loop_after_the_load(folder: Path, device: str) -> Any:
    """As axolotl #3395 does."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    model = load(folder, device)
    names = [(one.module, one.leaf) for one in expert_parameters(model)]
    for module, leaf in names:
        replace_parameter_4bit(module, leaf, compress_statistics=True, quant_type="nf4")
    return model


def as_each_is_set(folder: Path, device: str) -> Any:
    """As axolotl #3439 does."""
    with _quantizing_what_is_set():
        return load(folder, device)


@contextmanager
def _quantizing_what_is_set() -> Iterator[None]:
    from bitsandbytes.nn.parametrize import replace_parameter_4bit
    from transformers import core_model_loading

    found = core_model_loading.set_param_for_module

    def set_param_for_module(model: Any, target_name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        found(model, target_name, value, *args, **kwargs)
        if value.dim() == 3 and "expert" in target_name:
            path, _, leaf = target_name.rpartition(".")
            replace_parameter_4bit(model.get_submodule(path), leaf, compress_statistics=True, quant_type="nf4")
            value.data = torch.empty(0)

    core_model_loading.set_param_for_module = set_param_for_module
    try:
        yield
    finally:
        core_model_loading.set_param_for_module = found


def as_each_is_set_and_no_warmup(folder: Path, device: str) -> Any:
    """The allocator's warm-up asks for the bytes of experts at full precision, once, before anything is loaded."""
    from transformers import modeling_utils

    found = modeling_utils.caching_allocator_warmup
    modeling_utils.caching_allocator_warmup = lambda *args: None
    try:
        return as_each_is_set(folder, device)
    finally:
        modeling_utils.caching_allocator_warmup = found


def after_the_load(folder: Path, device: str) -> Any:
    model = load(folder, device)
    quantize_experts(model)
    return model


def under_the_fix(folder: Path, device: str) -> Any:
    with FIX.fixed():
        return load(folder, device)


STRATEGIES: dict[str, Callable[[Path, str], Any]] = {
    "as it is": load,
    "axolotl #3395: a loop after the load": loop_after_the_load,
    "quantize_experts after the load": after_the_load,
    "axolotl #3439: each tensor as it is set": as_each_is_set,
    "the same without the allocator's warm-up": as_each_is_set_and_no_warmup,
    "the fix: expert by expert": under_the_fix,
}


def values() -> None:
    columns = ["", "bf16", "4 bits, as it is", "4 bits, with the fix", "cosine", "relative L2", "top-1"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name, config in SMALL.items():
        with tempfile.TemporaryDirectory() as folder:
            _saved(config(), Path(folder))
            plain, bits = load(Path(folder), "cpu", four_bits=False), load(Path(folder), "cpu")
            mended = under_the_fix(Path(folder), "cpu")
            sizes = [held_bytes(model) for model in (plain, bits, mended)]
            torch.manual_seed(1)
            ids = torch.randint(0, 1024, (2, 64))
            with torch.no_grad():
                before, after = (model(ids).logits.float() for model in (bits, mended))
            cosine = torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0)
            apart = (before - after).norm() / before.norm()
            same = (before.argmax(-1) == after.argmax(-1)).float().mean()
            counts = " | ".join(f"{size:,}" for size in sizes)
            print(f"| {name} | {counts} | {cosine:.5f} | {apart:.3f} | {same:.3f} |", flush=True)


def _saved(config: Any, folder: Path) -> None:
    """Random weights as the model itself starts with."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def strategies() -> None:
    for name, config in SMALL.items():
        print(f"\n{name}\n\n| | peak | final | peak − final |\n|---|---|---|---|")
        with tempfile.TemporaryDirectory() as folder:
            make_checkpoint(config(), Path(folder), sparse=True, tokenizer=False)
            for title, way in STRATEGIES.items():
                found, final = _predicted(way, Path(folder), "h200")
                over = found.allocated_peak - final
                print(f"| {title} | {found.allocated_peak:,} | {final:,} | {over:,} |{_doubt(found)}", flush=True)


def _predicted(way: Callable[[Path, str], Any], folder: Path, card: str) -> tuple[Prediction, int]:
    final = 0

    def program(given: Any) -> Any:
        nonlocal final
        model = way(folder, given.device)
        final = held_bytes(model)
        return model

    return predict(program, card), final


def _doubt(found: Prediction) -> str:
    return f" INCONCLUSIVE: {found.doubt}" if found.doubt else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["values", "strategies"])
    warnings.simplefilter("ignore")
    {"values": values, "strategies": strategies}[parser.parse_args().what]()


if __name__ == "__main__":
    main()
