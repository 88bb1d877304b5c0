"""The names a limit may use: what each means, said once, for errors and for help."""

from __future__ import annotations

NAMES: dict[str, str] = {
    "fp32_size": "floating-point parameters × 4 bytes, counted before quantization, tied ones once, no buffers",
    "fp16_size": "floating-point parameters × 2 bytes, counted before quantization, tied ones once, no buffers",
    "bf16_size": "the same as fp16_size",
    "int8_size": "the weights after bitsandbytes' 8-bit quantization: Linear weights in 1 byte with scales, rest fp16",
    "nf4_size": "the weights after bitsandbytes' 4-bit quantization: Linear weights in ½ byte with state, rest fp16",
    "final_size": "weights, buffers and quantization state as they were when the model's load returned",
    "largest_param": "the largest single parameter, embeddings included, at the checkpoint's dtype",
}


def help_lines() -> list[str]:
    """One line for each name, aligned."""
    width = max(map(len, NAMES))
    return [f"{name:<{width}}  {meaning}" for name, meaning in NAMES.items()]
