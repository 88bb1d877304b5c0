"""What record_traces.py records: models from configurations with random weights, and random sizes."""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trace_recorder import Recorder

GIB = 2**30
MIB = 2**20


# --- models -----------------------------------------------------------------------------------------------------------


def llama(size: str, tiny: bool) -> Any:
    import transformers

    shapes = {
        "1.1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
        "350m": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16},
    }
    shape = shapes[size] | {"num_key_value_heads": 4, "vocab_size": 32000}
    if tiny:
        shape |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 128}
    return transformers.LlamaConfig(**shape, eos_token_id=None, bos_token_id=None, pad_token_id=0)


def built(config: Any, device: str) -> Any:
    import torch
    import transformers

    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config)
    torch.set_default_dtype(torch.float32)
    return model


def empty_checkpoint(config: Any, folder: Path) -> Path:
    """A checkpoint of zeros that takes no disk: a safetensors header, and a hole."""
    import torch
    import transformers

    with torch.device("meta"):
        weights = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, weight in weights.items():
        start, end = end, end + weight.numel() * 2
        entries[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    return folder


def steps(model: Any, optimizer: Any, batches: list[tuple[int, int]], device: str, vocabulary: int) -> None:
    import torch

    for rows, columns in batches:
        ids = torch.randint(0, vocabulary, (rows, columns), device=device)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


# --- workloads --------------------------------------------------------------------------------------------------------


def load_bf16(recorder: Recorder, tiny: bool, **kwargs: Any) -> None:
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        empty_checkpoint(llama("1.1b", tiny), Path(folder))
        recorder.start()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, device_map={"": recorder.device}, dtype=torch.bfloat16, **kwargs
        )
        recorder.kept.append(model)


def load_4bit(recorder: Recorder, tiny: bool) -> None:
    import transformers

    load_bf16(recorder, tiny, quantization_config=transformers.BitsAndBytesConfig(load_in_4bit=True))


def train(recorder: Recorder, tiny: bool) -> None:
    import torch

    config = llama("350m", tiny)
    recorder.start()
    model = built(config, recorder.device)
    optimizer = torch.optim.AdamW(model.parameters())
    recorder.kept += model, optimizer
    batches = [(1, 8)] * 2 if tiny else [(4, 512)] * 2
    steps(model, optimizer, batches[:1], recorder.device, config.vocab_size)
    recorder.reset_peak()
    steps(model, optimizer, batches[1:], recorder.device, config.vocab_size)


def lora(recorder: Recorder, tiny: bool) -> None:
    import peft
    import torch

    config = llama("1.1b", tiny)
    recorder.start()
    model = built(config, recorder.device)
    model = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights)
    recorder.kept += model, optimizer
    steps(model, optimizer, [(2, 16 if tiny else 1024)] * 2, recorder.device, config.vocab_size)


def generate(recorder: Recorder, tiny: bool) -> None:
    import torch

    config = llama("350m", tiny)
    recorder.start()
    model = built(config, recorder.device).eval()
    ids = torch.randint(1, config.vocab_size, (4, 8 if tiny else 200), device=recorder.device)
    recorder.kept.append(model)
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4 if tiny else 16, do_sample=False)


def train_until_refused(recorder: Recorder, tiny: bool) -> None:
    """Batches that grow until the card is full, then smaller ones of other shapes: what is cached does not fit."""
    import torch

    config = llama("350m", tiny)
    recorder.start()
    recorder.cap(6 * GIB)
    model = built(config, recorder.device)
    optimizer = torch.optim.AdamW(model.parameters())
    recorder.kept += model, optimizer
    shapes = [(1, 256), (2, 333), (3, 512), (4, 512), (8, 512), (16, 512), (3, 300), (5, 211), (2, 511)]
    for rows, columns in shapes:
        try:
            steps(model, optimizer, [(1, 8) if tiny else (rows, columns)], recorder.device, config.vocab_size)
        except torch.OutOfMemoryError as error:
            recorder.refused(error)
        optimizer.zero_grad()


def stress(
    recorder: Recorder, tiny: bool, *, seed: int, cap: int | None = None, streams: int = 1, turns: int = 3000
) -> None:
    """Sizes from 1 byte to 300 MB, taken and given back in no order, the cache emptied now and then."""
    import torch

    chance = random.Random(seed)
    recorder.start()
    if cap is not None:
        recorder.cap(cap)
    most = 8 * MIB if tiny else 6 * GIB
    largest = math.log2(MIB if tiny else 300_000_000)
    more = streams - 1 if recorder.recording else 0
    others = [torch.cuda.Stream() for _ in range(more)]
    live: list[tuple[int, Any]] = []
    recorder.kept.append(live)
    held = 0
    for _ in range(100 if tiny else turns):
        if chance.random() < 1 / 250:
            torch.cuda.empty_cache()
        if live and (held > most or chance.random() < 0.45):
            index = chance.randrange(len(live))
            live[index], live[-1] = live[-1], live[index]
            size, tensor = live.pop()
            held -= size
            del tensor
            continue
        size = int(2 ** chance.uniform(0, largest))
        if chance.random() < 0.2:
            size = chance.choice((512, 4096, MIB, MIB + 1, 8 * MIB, 10 * MIB - 1, 10 * MIB, 24 * MIB, 100 * MIB))
        stream = chance.choice([None, *others])
        try:
            with nullcontext() if stream is None else torch.cuda.stream(stream):
                live.append((size, torch.empty(size, dtype=torch.uint8, device=recorder.device)))
            held += size
        except torch.OutOfMemoryError as error:
            recorder.refused(error)
            # The largest goes, as a program that must go on would choose; a traceback would hold tensors.
            live.sort(key=lambda entry: entry[0])
            if live:
                held -= live.pop()[0]


@dataclass(frozen=True)
class Workload:
    run: Callable[[Recorder, bool], None]
    note: str
    settings: str = ""


WORKLOADS = {
    "load-bf16": Workload(load_bf16, "from_pretrained of a Llama of 1.1 billion parameters in bf16"),
    "load-4bit": Workload(load_4bit, "from_pretrained of a Llama of 1.1 billion parameters, quantized to 4 bits"),
    "train": Workload(train, "two steps of AdamW on a Llama of 0.4 billion parameters, the peak reset in between"),
    "train-expandable": Workload(train, "the same in expandable segments", "expandable_segments:True"),
    "train-max-split": Workload(train, "the same with large blocks left whole", "max_split_size_mb:64"),
    "lora": Workload(lora, "two steps of LoRA with gradient checkpointing on a Llama of 1.1 billion parameters"),
    "generate": Workload(generate, "16 tokens with a cache, 0.4 billion parameters"),
    "refused": Workload(train_until_refused, "training under 6 GiB until it is refused, and on from there"),
    "refused-expandable": Workload(train_until_refused, "the same in expandable segments", "expandable_segments:True"),
    "refused-max-split": Workload(train_until_refused, "the same with large blocks left whole", "max_split_size_mb:64"),
    "stress": Workload(lambda recorder, tiny: stress(recorder, tiny, seed=1), "random sizes"),
    "stress-streams": Workload(
        lambda recorder, tiny: stress(recorder, tiny, seed=2, streams=3), "random sizes on three streams"
    ),
    "stress-capped": Workload(
        lambda recorder, tiny: stress(recorder, tiny, seed=3, cap=3 * GIB), "random sizes under 3 GiB"
    ),
    "stress-expandable": Workload(
        lambda recorder, tiny: stress(recorder, tiny, seed=4, cap=4 * GIB, streams=2),
        "random sizes on two streams under 4 GiB",
        "expandable_segments:True",
    ),
    "stress-max-split": Workload(
        lambda recorder, tiny: stress(recorder, tiny, seed=5, cap=4 * GIB),
        "random sizes under 4 GiB, large blocks left whole",
        "max_split_size_mb:48",
    ),
    "stress-roundup": Workload(
        lambda recorder, tiny: stress(recorder, tiny, seed=6),
        "random sizes, rounded up to parts of powers of two",
        "roundup_power2_divisions:4",
    ),
    "stress-collected": Workload(
        lambda recorder, tiny: stress(recorder, tiny, seed=7, cap=4 * GIB),
        "random sizes under 4 GiB, old cached blocks collected early",
        "garbage_collection_threshold:0.6,max_split_size_mb:64",
    ),
}
