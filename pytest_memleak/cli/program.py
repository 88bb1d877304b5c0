"""What ``memleak predict`` runs for a config: an ordinary load, and ordinary steps of training.

The functions that do something on the card are named as the answer is to call them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pytest_memleak.prediction import PredictedCard

STEPS = 2  # the second has the optimizer's state from the beginning


@dataclass(frozen=True)
class Run:
    folder: Path
    architecture: str
    dtype: str
    quantize: str
    train: str
    rows: int
    columns: int

    @property
    def checkpointed(self) -> bool:
        """As PEFT prepares quantized models."""
        return self.train == "lora" and self.quantize != "none"

    def in_words(self) -> str:
        load = {"4bit": "load in 4 bits (bitsandbytes nf4)", "8bit": "load in 8 bits (bitsandbytes)"}
        tokens = f"{self.rows} × {self.columns} tokens"
        what = {
            "none": f"one forward pass of {tokens}, without gradients",
            "full": f"{STEPS} steps of AdamW on all weights, {tokens} each",
            "lora": f"{STEPS} steps of AdamW on LoRA adapters (rank 16, all linear layers), {tokens} each",
        }
        checkpointed = ", gradient checkpointing" if self.checkpointed else ""
        return f"{load.get(self.quantize, f'load in {self.dtype}')}; {what[self.train]}{checkpointed}"


@dataclass
class Program:
    run: Run
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
        model = _load(self.run, card)
        self._begin("")
        self.weights = torch.cuda.memory_allocated()
        self.parameters = sum(
            weight.quant_state.shape.numel() if hasattr(weight, "quant_state") else weight.numel()
            for weight in model.parameters()
        )
        if self.run.train == "none":
            self._begin("forward")
            out = _forward(model.eval(), self._tokens(model, card), gradients=False)
            self._begin("")
            return model, out
        if self.run.train == "lora":
            self._begin("adapters")
            model = _adapters(model, self.run)
        model.train()
        optimizer = optimizer_of([weight for weight in model.parameters() if weight.requires_grad])
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
        return torch.randint(0, most, (self.run.rows, self.run.columns), device=card.device)


def to_be_trained(run: Run, card: PredictedCard) -> Any:
    """The model alone, for a plan to say what is checkpointed."""
    model = _load(run, card)
    return _adapters(model, run, checkpointed=False) if run.train == "lora" else model


def optimizer_of(weights: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights)


def _load(run: Run, card: PredictedCard) -> Any:
    import transformers

    more = {}
    if run.quantize != "none":
        more["quantization_config"] = transformers.BitsAndBytesConfig(**{f"load_in_{run.quantize}": True})
    architecture = getattr(transformers, run.architecture)
    return architecture.from_pretrained(
        run.folder, device_map={"": card.device}, dtype=getattr(torch, run.dtype), **more
    )


def _adapters(model: Any, run: Run, *, checkpointed: bool = True) -> Any:
    import peft

    if run.quantize != "none":
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointed)
    return peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))


def _forward(model: Any, ids: torch.Tensor, *, gradients: bool) -> Any:
    given = {"input_ids": ids}
    if gradients:
        given["labels"] = ids
    elif getattr(model.config, "is_encoder_decoder", False):  # which makes its decoder's of labels alone
        given["decoder_input_ids"] = ids
    with torch.set_grad_enabled(gradients):
        return model(**given)


def _backward(loss: torch.Tensor) -> None:
    loss.backward()


def _optimizer(optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    optimizer.zero_grad()
