"""The same promise on two releases of transformers: a 4-bit load must not pile up full-precision weights.

    pytest benchmarks/four_bit_load.py -v

Needs a CUDA device, transformers and bitsandbytes, and a few GB of disk. Releases 5.0 to 5.3 break the promise (a pool
of workers materializes what is not quantized yet), later and earlier ones keep it. Both limits are there because the
obvious one, the model's fp16 size, is too loose to catch it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from truth_models import built, causal, llama

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.1 billion random parameters in fp16, as a checkpoint on disk."""
    folder: Path = tmp_path_factory.mktemp("llama-1b")
    built(causal(llama("1.1B")), "cuda", "float16").save_pretrained(folder)
    return folder


def load(checkpoint: Path) -> object:
    return transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint,
        quantization_config=transformers.BitsAndBytesConfig(load_in_4bit=True),
        device_map={"": "cuda:0"},
        dtype=torch.float16,
    )


@pytest.mark.max_peak("final_size + 2 * largest_param")
def test_tight_limit(checkpoint: Path) -> None:
    load(checkpoint)


@pytest.mark.max_peak("fp16_size")
def test_loose_limit(checkpoint: Path) -> None:
    load(checkpoint)


@pytest.mark.max_leak(repeat=2)
def test_nothing_is_kept(checkpoint: Path) -> None:
    load(checkpoint)
