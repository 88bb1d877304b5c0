"""What the fix moe_experts costs in time: a mixture's loads in 4 bits without it and with it, and reading an expert.

    python benchmarks/moe_load_time.py                           # where a CUDA device is: 13 GB in bf16
    python benchmarks/moe_load_time.py --device cpu --layers 1   # anywhere, smaller: to see that it runs

Needs transformers 5 and bitsandbytes 0.48 or later. Qwen3-30B-A3B's layers, ten of its 48; weights are zeros that take
no disk. Both kinds of loads alternate, each round in another order, and the best of all rounds counts. An expert tensor
of a load with the fix is then read beside one that bitsandbytes' own function has quantized: that is to take as long.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}

import torch

from benchmarks.real_sizes import qwen3_30b_a3b
from pytest_memleak import fixes
from pytest_memleak.upstream.checkpoints import make_checkpoint

READINGS = 20


def checkpoint(folder: str, layers: int, experts: int) -> Path:
    config = qwen3_30b_a3b(num_hidden_layers=layers, num_experts=experts)
    return make_checkpoint(config, Path(folder), sparse=True, tokenizer=False)


def load(folder: Path, device: str) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=four_bits, device_map={"": device}
    )


def timed(does: Callable[[], Any], device: str) -> tuple[float, Any]:
    _settle(device)
    begun = time.perf_counter()
    made = does()
    _settle(device)
    return time.perf_counter() - begun, made


def _settle(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def one_load(folder: Path, device: str, fixed: bool) -> tuple[float, int]:
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with fixes.find("moe_experts").fixed() if fixed else contextlib.nullcontext():
        seconds, model = timed(lambda: load(folder, device), device)
    del model
    return seconds, torch.cuda.max_memory_allocated(device) if device != "cpu" else 0


def readings(folder: Path, device: str) -> tuple[float, float]:
    """Seconds that reading one tensor takes: by the fix, and by bitsandbytes' own function."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    with fixes.find("moe_experts").fixed():
        by_the_fix = load(folder, device).model.layers[0].mlp.experts
    own = torch.nn.Module()
    value = by_the_fix.gate_up_proj.detach().clone()
    own.register_parameter("gate_up_proj", torch.nn.Parameter(value, requires_grad=False))
    del value
    replace_parameter_4bit(own, "gate_up_proj", compress_statistics=True, quant_type="nf4")
    best = [float("inf"), float("inf")]
    for number in range(READINGS):
        for place in (0, 1) if number % 2 else (1, 0):
            module = (by_the_fix, own)[place]
            seconds, _ = timed(lambda module=module: module.gate_up_proj, device)
            best[place] = min(best[place], seconds)
    return best[0], best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    import bitsandbytes
    import transformers

    where = torch.cuda.get_device_name(given.device) if given.device != "cpu" else "the CPU"
    print(
        f"transformers {transformers.__version__}, bitsandbytes {bitsandbytes.__version__}, torch {torch.__version__}"
    )
    best: dict[bool, float] = {}
    peaks: dict[bool, int] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = checkpoint(place, given.layers, given.experts)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        for number in range(given.rounds + 1):
            for fixed in (False, True) if number % 2 else (True, False):
                seconds, peaks[fixed] = one_load(folder, given.device, fixed)
                if number:  # the first of each imports modules
                    best[fixed] = min(best.get(fixed, seconds), seconds)
        by_the_fix, own = readings(folder, given.device)
    print(f"{size / 1e9:.1f} GB in bf16, on {where}; best of {given.rounds}")
    for fixed in (False, True):
        print(f"  {'with' if fixed else 'without'} moe_experts: {best[fixed]:.3f} s, peak {peaks[fixed]:,} B")
    print(f"  × {best[True] / best[False]:.3f} of the load without")
    print(f"  reading an expert tensor: {by_the_fix * 1e3:.3f} ms, × {by_the_fix / own:.3f} of bitsandbytes' own")


if __name__ == "__main__":
    main()
