"""What the planner predicts at real size: Qwen3.5-27B with QLoRA on 24 GiB, and Llamas with all weights on one card.

    python benchmarks/planner_sizes.py                       # both
    python benchmarks/planner_sizes.py --only llama

No GPU is needed: models are built on a simulated card without end, one block of each shape is profiled, and plans are
searched for cards of other sizes. Every figure is a prediction for the releases that are installed; seconds rest on
presumed speeds (pytest_memleak/planner/speeds.py).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

GIB = 2**30
ENDLESS = "800G"
CARDS = {"24 GiB": 24 * GIB, "80 GiB": 80 * GIB, "141 GiB": 141 * GIB}
TOKENS = 1024
NOTHING = "nothing fits"
SEED = (
    "reported (axolotl fork, pull request 39; two cards of 24 GB, each with a copy): predicted 19.76 GB without the "
    "tower, really about 23.5, of which 3.7 are blamed on it; with 4 GiB left free it offloads (n_persist=34) and "
    "trains at 5.05 s a step"
)
PAPER = "ProTrain's paper trains up to 34 billion parameters on one card of 24 GB (DeepSpeed: 15), by secondary sources"
LLAMAS = {
    "7B": (4096, 11008, 32, 32, 32),
    "13B": (5120, 13824, 40, 40, 40),
    "33B": (6656, 17920, 60, 52, 52),
    "70B": (8192, 28672, 80, 64, 8),
    "405B": (16384, 53248, 126, 128, 8),
}
"""Width, width between, blocks, heads, heads of keys: as in Llama's papers."""


def qwen_config() -> Any:
    """By what the config.json of Qwen/Qwen3.5-27B says of sizes."""
    from transformers import Qwen3_5Config

    rope = {
        "rope_type": "default",
        "mrope_section": [11, 11, 10],
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
        "mrope_interleaved": True,
    }
    text = {
        "vocab_size": 248320,
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "num_hidden_layers": 64,
        "num_attention_heads": 24,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 48,
        "rope_parameters": rope,
    }
    vision = {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "patch_size": 16,
        "out_hidden_size": 5120,
        "num_position_embeddings": 2304,
    }
    return Qwen3_5Config(text_config=text, vision_config=vision)


def adamw(weights: Any) -> Any:
    import torch

    return torch.optim.AdamW(weights)


def predicted(program: Callable[[Any], None]) -> None:
    import pytest_memleak

    found = pytest_memleak.predict(program, card=ENDLESS)
    if found.doubt or not found.fits:
        print(f"INCONCLUSIVE: {found.doubt or found.refusal}")


def told(planner: Any, capacity: int) -> str:
    from pytest_memleak.planner.search import NothingFits

    begun = time.perf_counter()
    try:
        found = planner.search(capacity)
    except NothingFits as error:
        return f"{NOTHING}: {error}"
    took = time.perf_counter() - begun
    host = sum(
        chunk.weights + chunk.gradients + chunk.optimizer for chunk in planner.layout.streamed(found.plan.n_persist)
    )
    return (
        f"{found.plan}: {found.peak / GIB:.2f} GiB ({found.where}), {found.seconds:.2f} s a step, {host / GIB:.0f} GiB "
        f"of states on the host; found in {took:.2f} s"
    )


def qwen() -> None:
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    from pytest_memleak.planner import Plan, Planner
    from pytest_memleak.planner.estimate import highest
    from pytest_memleak.upstream.checkpoints import make_checkpoint

    def program(card: Any) -> None:
        import peft
        import torch

        with tempfile.TemporaryDirectory() as folder:
            make_checkpoint(qwen_config(), Path(folder), sparse=True, tokenizer=False)
            config = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
            model = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=torch.bfloat16, quantization_config=config, device_map={"": card.device}
            )
        print(f"  loaded: {torch.cuda.memory_allocated() / GIB:.2f} GiB")
        names = "q_proj|k_proj|v_proj|o_proj|in_proj_qkv|in_proj_z|out_proj|gate_proj|up_proj|down_proj"
        targets = rf".*language_model.*({names})"
        adapted: Any = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules=targets))
        adapted.enable_input_require_grads()
        begun = time.perf_counter()
        planner = Planner.of(adapted, make_optimizer=adamw, tokens=TOKENS)
        blocks, chunks = planner.layout.blocks, len(planner.layout.chunks)
        kinds = ", ".join(profile.kind for profile in planner.profiles)
        print(f"  profiled ({kinds}) in {time.perf_counter() - begun:.1f} s; {blocks} blocks")
        for name, plan in {
            "everything stays": Plan(chunks, 0),
            "everything checkpointed": Plan(chunks, 0, n_checkpoint=blocks),
            "everything offloaded": Plan(chunks, 0, n_offload=blocks),
        }.items():
            for profile in planner.profiles:
                point = highest([profile], planner.layout, plan)
                print(f"  {name:24} {profile.kind:6} {point.peak / GIB:7.2f} GiB ({point.where})")
        print(f"  on 24 GiB: {told(planner, 24 * GIB)}")

    print(f"Qwen3.5-27B, QLoRA (nf4, rank 16 on the language model), {TOKENS} tokens, images of 896 pixels")
    print(f"  {SEED}")
    predicted(program)


def llamas() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from pytest_memleak.planner import Planner

    print(f"Llamas, all weights by AdamW in bfloat16, {TOKENS} tokens; {PAPER}")
    largest: dict[str, str] = {}
    for name, (width, between, blocks, heads, keys) in LLAMAS.items():
        config = LlamaConfig(
            vocab_size=128256 if name == "405B" else 32000,
            hidden_size=width,
            intermediate_size=between,
            num_hidden_layers=blocks,
            num_attention_heads=heads,
            num_key_value_heads=keys,
        )

        def program(card: Any, config: Any = config, name: str = name) -> None:
            import torch

            with torch.device(card.device):
                model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
            begun = time.perf_counter()
            planner = Planner.of(model, make_optimizer=adamw, tokens=TOKENS)
            print(f"  {name}: profiled in {time.perf_counter() - begun:.1f} s")
            for card_name, size in CARDS.items():
                found = told(planner, size)
                print(f"    {card_name:8} {found}")
                if not found.startswith(NOTHING):
                    largest[card_name] = name

        predicted(program)
    print("  the largest that fits: " + ", ".join(f"{name} on {card}" for card, name in largest.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=["qwen", "llama"])
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["TQDM_DISABLE"] = "1"
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages))
    if chosen.only != "llama":
        qwen()
    if chosen.only != "qwen":
        llamas()


if __name__ == "__main__":
    main()
