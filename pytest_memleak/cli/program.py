"""What ``memleak predict`` runs for a config: an ordinary load, and ordinary steps of training.

The functions that do something on the card are named as the answer is to call them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pytest_memleak.prediction import PredictedCard

STEPS = 2  # the second has the optimizer's state from the beginning


@dataclass(frozen=True)
class Plan:
    folder: Path
    architecture: str
    dtype: str
    quantize: str
    train: str
    rows: int
    columns: int

    def in_words(self) -> str:
        load = {"4bit": "load in 4 bits (bitsandbytes nf4)", "8bit": "load in 8 bits (bitsandbytes)"}
        tokens = f"{self.rows} × {self.columns} tokens"
        what = {
            "none": f"one forward pass of {tokens}, without gradients",
            "full": f"{STEPS} steps of AdamW on all weights, {tokens} each",
            "lora": f"{STEPS} steps of AdamW on LoRA adapters (rank 16, all linear layers), {tokens} each",
        }
        checkpointed = ", gradient checkpointing" if self.train == "lora" and self.quantize != "none" else ""
        return f"{load.get(self.quantize, f'load in {self.dtype}')}; {what[self.train]}{checkpointed}"


@dataclass
class Program:
    plan: Plan
    tell: Callable[[str], None]
    """Is told what begins."""
    stage: str = ""
    """What is being done, or was when the card was full."""
    peak_stage: str = ""
    """In which stage most was allocated."""
    weights: int = 0
    parameters: int = 0
    _peak: int = field(default=0, repr=False)

    def __call__(self, card: PredictedCard) -> object:
        self._begin("load")
        model = _load(self.plan, card)
        self._begin("")
        self.weights = torch.cuda.memory_allocated()
        self.parameters = sum(
            weight.quant_state.shape.numel() if hasattr(weight, "quant_state") else weight.numel()
            for weight in model.parameters()
        )
        if self.plan.train == "none":
            self._begin("forward")
            out = _forward(model.eval(), self._tokens(model, card), gradients=False)
            self._begin("")
            return model, out
        if self.plan.train == "lora":
            self._begin("adapters")
            model = _adapters(model, self.plan)
        model.train()
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
        for step in range(1, STEPS + 1):
            ids = self._tokens(model, card)
            self._begin(f"forward of step {step}")
            loss = _forward(model, ids, gradients=True).loss
            self._begin(f"backward of step {step}")
            _backward(loss)
            self._begin(f"optimizer of step {step}")
            _optimizer(optimizer)
            del loss
        self._begin("")
        return model, optimizer

    def _begin(self, stage: str) -> None:
        """The stage before ends with that: whatever rose the peak, it was that one."""
        self.end_stage()
        self.stage = stage or self.stage
        if stage:
            self.tell(stage)

    def end_stage(self) -> None:
        peak = torch.cuda.max_memory_allocated()
        if peak > self._peak:
            self._peak, self.peak_stage = peak, self.stage

    def _tokens(self, model: Any, card: PredictedCard) -> torch.Tensor:
        most = model.config.get_text_config().vocab_size
        return torch.randint(0, most, (self.plan.rows, self.plan.columns), device=card.device)


def _load(plan: Plan, card: PredictedCard) -> Any:
    import transformers

    more = {}
    if plan.quantize != "none":
        more["quantization_config"] = transformers.BitsAndBytesConfig(**{f"load_in_{plan.quantize}": True})
    architecture = getattr(transformers, plan.architecture)
    return architecture.from_pretrained(
        plan.folder, device_map={"": card.device}, dtype=getattr(torch, plan.dtype), **more
    )


def _adapters(model: Any, plan: Plan) -> Any:
    import peft

    if plan.quantize != "none":
        model = peft.prepare_model_for_kbit_training(model)  # type: ignore[no-untyped-call, unused-ignore]
    return peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))


def _forward(model: Any, ids: torch.Tensor, *, gradients: bool) -> Any:
    with torch.set_grad_enabled(gradients):
        return model(input_ids=ids, labels=ids) if gradients else model(input_ids=ids)


def _backward(loss: torch.Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def _optimizer(optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    optimizer.zero_grad()
