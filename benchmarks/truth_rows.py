"""What truth.py runs: each row is an ordinary program on a device, with public functions alone.

Models come from configurations with random weights, checkpoints are zeros in sparse files: nothing is downloaded. What
a row returns stays alive until its memory has been read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truth_models import built, causal, gpt2, llama, sparse_checkpoint

GIB = 2**30


def load(folder: Path, device: str, **quantization: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    more = {"quantization_config": BitsAndBytesConfig(**quantization)} if quantization else {}
    return AutoModelForCausalLM.from_pretrained(folder, device_map={"": device}, dtype=torch.bfloat16, **more)


def capped(size: int, device: str) -> None:
    """The allocator may have so much from now on; nobody is told."""
    import torch

    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.get_device_properties(device).total_memory, device)


def tokens(config: Any, rows: int, columns: int, device: str) -> Any:
    import torch

    return torch.randint(1, config.vocab_size, (rows, columns), device=device)


def steps(model: Any, device: str, rows: int, columns: int, count: int = 2) -> Any:
    import torch

    model.train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    for _ in range(count):
        ids = tokens(model.config, rows, columns, device)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def train_llama(size: str, rows: int, columns: int, cap: int | None = None) -> Callable[[str, Any], Any]:
    def run(device: str, prepared: Any) -> Any:
        if cap is not None:
            capped(cap, device)
        return steps(built(causal(llama(size)), device), device, rows, columns)

    return run


def train_gpt2(device: str, prepared: Any) -> Any:
    return steps(built(causal(gpt2()), device, "float32"), device, 4, 512)


def train_gpt2_in_graphs(device: str, prepared: Any) -> Any:
    """Compiled as far as torch's own operations go: graphs for both passes, and nobody's kernels."""

    model = built(causal(gpt2()), device, "float32")
    model.compile(backend="aot_eager")
    return steps(model, device, 4, 512)


def trainer(autocast: bool) -> Callable[[str, Any], Any]:
    def run(device: str, prepared: Any) -> Any:
        import torch
        from transformers import Trainer, TrainingArguments

        model = built(causal(gpt2()), device, "float32")
        ids = torch.randint(1, 50257, (24, 256), generator=torch.Generator().manual_seed(0))
        with tempfile.TemporaryDirectory() as folder:
            training = Trainer(
                model=model,
                args=TrainingArguments(
                    folder,
                    max_steps=3,
                    per_device_train_batch_size=8,
                    bf16=autocast,
                    logging_steps=1,
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                ),
                train_dataset=[{"input_ids": row, "labels": row} for row in ids],
            )
            training.train()
        return training

    return run


def lora(checkpointed: bool) -> Callable[[str, Any], Any]:
    def run(device: str, prepared: Any) -> Any:
        import peft

        model = built(causal(llama("1.1B")), device)
        model = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
        if checkpointed:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        return steps(model, device, 2, 1024)

    return run


def qlora(device: str, folder: Path) -> Any:
    """LoRA on a model that was loaded in 4 bits, prepared as PEFT says."""
    return adapted(load(folder, device, load_in_4bit=True, bnb_4bit_compute_dtype="bfloat16"), device)


def qlora_8bit(device: str, folder: Path) -> Any:
    return adapted(load(folder, device, load_in_8bit=True), device)


def adapted(model: Any, device: str) -> Any:
    import peft

    model = peft.prepare_model_for_kbit_training(model)
    model = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    return steps(model, device, 1, 512)


def forward_8bit(device: str, folder: Path) -> Any:
    import torch

    model = load(folder, device, load_in_8bit=True).eval()
    with torch.no_grad():
        return model, model(tokens(model.config, 1, 512, device)).logits


def generate(device: str, prepared: Any) -> Any:
    import torch

    config = llama("Llama-3.2-1B")
    model = built(causal(config), device).eval()
    ids = tokens(config, 4, 200, device)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False)
    return model, out


def mixture(kind: str) -> Callable[[str, Any], Any]:
    """Forward and backward through a small mixture of experts."""

    def run(device: str, prepared: Any) -> Any:
        from transformers import MixtralConfig, Qwen3MoeConfig

        sizes = {
            "hidden_size": 1024,
            "num_hidden_layers": 8,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "vocab_size": 32000,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        config = (
            MixtralConfig(**sizes, intermediate_size=3584)
            if kind == "mixtral"
            else Qwen3MoeConfig(
                **sizes,
                intermediate_size=3072,
                moe_intermediate_size=768,
                head_dim=128,
                num_experts=32,
                num_experts_per_tok=4,
            )
        )
        model = built(causal(config), device)
        ids = tokens(config, 2, 512, device)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return model, loss

    return run


def qwen2_vl(device: str, prepared: Any) -> Any:
    """One image of 448 × 448 and some text, forward."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    image, start, end = 31990, 31991, 31992
    config = Qwen2VLConfig(
        text_config={
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 12,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "vocab_size": 32000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": 0,
        },
        vision_config={"depth": 12, "embed_dim": 768, "num_heads": 12, "hidden_size": 1024},
        image_token_id=image,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    model = built(lambda: Qwen2VLForConditionalGeneration(config), device).eval()
    side = 448 // 14
    grid = torch.tensor([[1, side, side]], device=device)
    pixels = torch.randn(side * side, 3 * 2 * 14 * 14, device=device, dtype=torch.bfloat16)
    seen = [start, *[image] * (side * side // 4), end]
    ids = torch.tensor([[*seen, *range(1, 65)]], device=device)
    kinds = (ids == image).int()  # newer releases ask for it, older ones take it and do not look
    with torch.no_grad():
        out = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=kinds,
            pixel_values=pixels,
            image_grid_thw=grid,
        )
    return model, out.logits


def llava(device: str, prepared: Any) -> Any:
    """One image of 336 × 336 and some text, forward and backward."""
    import torch
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    image = 31990
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=336
        ),
        text_config={
            "model_type": "llama",
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 12,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "vocab_size": 32000,
        },
        image_token_id=image,
    )
    model = built(lambda: LlavaForConditionalGeneration(config), device)
    patches = (336 // config.vision_config.patch_size) ** 2
    ids = torch.tensor([[*[image] * patches, *range(1, 65)]], device=device)
    pixels = torch.randn(1, 3, 336, 336, device=device, dtype=torch.bfloat16)
    loss = model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), labels=ids).loss
    loss.backward()
    return model, loss


# --- the list ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    run: Callable[[str, Any], Any]
    """Is given the device and what `prepare` made."""
    note: str
    prepare: Callable[[Path], Any] = lambda folder: None
    """Not measured: checkpoints on disk."""
    load: bool = False
    """A load is the same in every run, and held to the narrower bar."""


def _loads(size: str) -> dict[str, Row]:
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "bf16": ("in bf16", {}),
        "8bit": ("quantized to 8 bits", {"load_in_8bit": True}),
        "4bit": ("quantized to 4 bits", {"load_in_4bit": True}),
        "nested": (
            "quantized to 4 bits, and its scales again",
            {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
        ),
    }
    return {
        f"load-{kind}-{size}": Row(
            lambda device, folder, options=options: load(folder, device, **options),
            f"from_pretrained of a Llama of {size} parameters, {words}",
            lambda folder: sparse_checkpoint(size, folder),
            load=True,
        )
        for kind, (words, options) in kinds.items()
    }


def _load_capped(device: str, folder: Path) -> Any:
    capped(32 * GIB, device)
    return load(folder, device, load_in_4bit=True)


ROWS: dict[str, Row] = {
    **_loads("1.1B"),
    **_loads("33.7B"),
    "load-4bit-33.7B-in-32GiB": Row(
        _load_capped,
        "the load in 4 bits with 32 GiB to be had",
        lambda folder: sparse_checkpoint("33.7B", folder),
        load=True,
    ),
    "train-llama-1B": Row(train_llama("Llama-3.2-1B", 4, 512), "two steps of AdamW in bf16, 4 × 512 tokens"),
    "train-llama-8B": Row(train_llama("Llama-3.1-8B", 1, 512), "two steps of AdamW in bf16, 512 tokens"),
    "train-llama-8B-in-48GiB": Row(
        train_llama("Llama-3.1-8B", 1, 512, cap=48 * GIB), "the same with 48 GiB to be had, which is too little"
    ),
    "train-gpt2": Row(train_gpt2, "two steps of AdamW on GPT-2 in fp32, 4 × 512 tokens"),
    "train-gpt2-in-graphs": Row(train_gpt2_in_graphs, 'the same under torch.compile with backend="aot_eager"'),
    "trainer-fp32": Row(trainer(autocast=False), "three steps of Trainer on GPT-2 in fp32, 8 × 256 tokens"),
    "trainer-bf16": Row(trainer(autocast=True), "the same with bf16 autocast"),
    "lora": Row(lora(checkpointed=False), "two steps of LoRA on a Llama of 1.1B, 2 × 1024 tokens"),
    "lora-checkpointed": Row(lora(checkpointed=True), "the same with gradient checkpointing"),
    "qlora": Row(
        qlora, "two steps of LoRA on the 1.1B in 4 bits, 512 tokens", lambda folder: sparse_checkpoint("1.1B", folder)
    ),
    "forward-8bit": Row(
        forward_8bit,
        "a forward pass of the 1.1B in 8 bits, 512 tokens",
        lambda folder: sparse_checkpoint("1.1B", folder),
    ),
    "qlora-8bit": Row(qlora_8bit, "the same as qlora in 8 bits", lambda folder: sparse_checkpoint("1.1B", folder)),
    "generate": Row(generate, "32 tokens after 4 × 200 by Llama-3.2-1B in bf16"),
    "moe-mixtral": Row(mixture("mixtral"), "forward and backward of a small Mixtral, 2 × 512 tokens"),
    "moe-qwen3": Row(mixture("qwen3"), "forward and backward of a small Qwen3-MoE, 2 × 512 tokens"),
    "vlm-qwen2": Row(qwen2_vl, "forward of a small Qwen2-VL with one image"),
    "vlm-llava": Row(llava, "forward and backward of a small Llava with one image"),
}
