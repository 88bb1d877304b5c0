"""Promises that break, to see what a failure looks like. Every test here fails or is an error, and is meant to.

The name keeps pytest from collecting this file. Run it by its path: pytest examples/broken_on_purpose.py --gpu-cap=4G
"""

import contextlib

import pytest

torch = pytest.importorskip("torch")

LOSSES = []


@pytest.fixture(scope="module")
def layer(card):
    return torch.nn.Linear(512, 512, device=card.device)


@pytest.mark.max_leak
def test_loss_is_kept_with_its_graph(layer):
    batch = torch.randn(64, 512, device=layer.weight.device)
    LOSSES.append(layer(batch).sum())  # .item() would have kept a number


@pytest.mark.max_leak(repeat=3)
def test_each_run_keeps_a_little_more(card):
    LOSSES.append(torch.ones(1024, device=card.device))


@pytest.mark.max_peak("0.75 * fp16_size")
def test_somebody_forgot_the_quantization(checkpoint, card):
    transformers = pytest.importorskip("transformers", minversion="4.56")  # for dtype=
    pytest.importorskip("accelerate")  # for device_map
    transformers.AutoModelForCausalLM.from_pretrained(checkpoint, device_map=card.device, dtype=torch.float16)


@pytest.mark.max_host_peak("16MiB")
def test_file_is_read_into_memory_whole(checkpoint):
    weights = torch.frombuffer(bytearray((checkpoint / "model.safetensors").read_bytes()), dtype=torch.uint8)
    copies = [weights.clone() for _ in range(8)]
    assert copies


def test_a_block_has_a_limit(card, memory):
    with memory.measure("build") as building:
        building.limit("1MiB")
        torch.nn.Linear(1024, 1024, device=card.device)


@pytest.mark.gpu_cap("1G")
def test_card_is_too_small(card):
    torch.empty(2 * 1024**3, dtype=torch.uint8, device=card.device)


@pytest.mark.gpu_cap("1G")
def test_out_of_memory_is_swallowed(card):
    with contextlib.suppress(torch.OutOfMemoryError):
        torch.empty(2 * 1024**3, dtype=torch.uint8, device=card.device)


@pytest.mark.max_peak("1.1 * fp16_size")
def test_no_model_in_sight(card):
    torch.ones(8, device=card.device)


@pytest.mark.max_peak("16 gigs")
def test_limit_cannot_be_read(card):
    torch.ones(8, device=card.device)
