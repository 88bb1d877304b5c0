"""Batch norm on the simulated card takes what it took on an H200: torch goes by what it hears of cuDNN.

Each was recorded there with torch 2.11, the sizes that the caching allocator was asked for in a second pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pytest_memleak.cards.simulated.simulation import Simulation
from tests.cards.simulated.conftest import Events

HALF = torch.float16


def ones(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(*size, dtype=dtype, device="cuda").requires_grad_()


def channels_last() -> torch.Tensor:
    return ones(8, 64, 28, 28).detach().to(memory_format=torch.channels_last).requires_grad_()


ROWS = 2048  # of an instance norm: 8 images with 64 channels
CASES: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[], torch.Tensor], bool, str, list[int], list[int]]] = {
    "cudnn": (
        lambda: torch.nn.BatchNorm2d(64),
        lambda: ones(8, 64, 28, 28),
        True,
        "CudnnBatchNormBackward0",
        [1605632, 256, 256],
        [1605632, 256, 256],
    ),
    "cudnn, halves": (
        lambda: torch.nn.BatchNorm2d(64),
        lambda: ones(8, 64, 28, 28, dtype=HALF),
        True,
        "CudnnBatchNormBackward0",
        [802816, 256, 256],
        [802816, 256, 256],
    ),
    "cudnn, in one dimension": (
        lambda: torch.nn.BatchNorm1d(64),
        lambda: ones(8, 64, 30),
        True,
        "CudnnBatchNormBackward0",
        [61440, 256, 256],
        [61440, 256, 256],
    ),
    "cudnn, in three": (
        lambda: torch.nn.BatchNorm3d(64),
        lambda: ones(2, 64, 8, 8, 8),
        True,
        "CudnnBatchNormBackward0",
        [262144, 256, 256],
        [262144, 256, 256],
    ),
    "cudnn, without training": (
        lambda: torch.nn.BatchNorm2d(64),
        lambda: ones(8, 64, 28, 28),
        False,
        "CudnnBatchNormBackward0",
        [1605632],
        [1605632, 256, 256],
    ),
    "torch's own, halves": (
        lambda: torch.nn.BatchNorm2d(64).half(),
        lambda: ones(8, 64, 28, 28, dtype=HALF),
        True,
        "NativeBatchNormBackward0",
        [802816, 256, 256],
        [802816, 128, 128],
    ),
    "torch's own, rows": (
        lambda: torch.nn.BatchNorm1d(64),
        lambda: ones(8, 64),
        True,
        "NativeBatchNormBackward0",
        [2048, 256, 256],
        [256, 256, 256, 256, 2048, -256, -256],
    ),
    "torch's own, rows without training": (
        lambda: torch.nn.BatchNorm1d(64),
        lambda: ones(8, 64),
        False,
        "NativeBatchNormBackward0",
        [2048, 256, 256],
        [256, 256, 256, 256, 2048, -256, -256],
    ),
    "channels last without training": (
        lambda: torch.nn.BatchNorm2d(64),
        channels_last,
        False,
        "CudnnBatchNormBackward0",
        [1605632],
        [256, 256, 256, 256, 256, 1605632, -256, -256, -256],
    ),
    "instance norm": (
        lambda: torch.nn.InstanceNorm2d(64, affine=True),
        lambda: ones(8, 64, 28, 28),
        True,
        "ViewBackward0",
        [ROWS, ROWS, 1605632, ROWS, ROWS, -ROWS],
        [1605632, ROWS, ROWS, -ROWS, -ROWS, -ROWS, 256, -ROWS, 256, -ROWS],
    ),
}


@pytest.mark.parametrize(("module", "numbers", "trains", "kind", "forward", "backward"), CASES.values(), ids=CASES)
def test_takes_what_it_took_on_a_card(
    events: Events,
    module: Callable[[], torch.nn.Module],
    numbers: Callable[[], torch.Tensor],
    trains: bool,
    kind: str,
    forward: list[int],
    backward: list[int],
) -> None:
    layer = module().cuda().train(trains)
    given = numbers()
    results: list[Any] = []
    assert events(lambda: results.append(layer(given))) == forward
    (result,) = results
    assert type(result.grad_fn).__name__ == kind
    gradient = torch.ones_like(result).contiguous()
    found = events(lambda: results.append(torch.autograd.grad(result, [*layer.parameters(), given], gradient)))
    # What autograd gives back when the pass is over was not the kernel's.
    assert found[: len(backward)] == backward
    assert all(size < 0 for size in found[len(backward) :])


class Block(torch.nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            torch.nn.BatchNorm2d(out),
            torch.nn.ReLU(inplace=True),
            torch.nn.Conv2d(out, out, 3, 1, 1, bias=False),
            torch.nn.BatchNorm2d(out),
        )
        self.short = torch.nn.Sequential(torch.nn.Conv2d(channels, out, 1, stride), torch.nn.BatchNorm2d(out))

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layers(numbers) + self.short(numbers))


def resnet() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 7, 2, 3, bias=False),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(3, 2, 1),
        Block(16, 32, 2),
        Block(32, 64, 2),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 10),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_a_resnet_is_trained_and_used(simulation: Simulation, dtype: torch.dtype, format: torch.memory_format) -> None:
    simulation.unknowns.reset()
    laid_out: Any = {"memory_format": format}
    model = resnet().to("cuda", **laid_out)
    images = torch.randn(4, 3, 64, 64, device="cuda").to(memory_format=format)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            loss = torch.nn.functional.cross_entropy(model(images), torch.arange(4, device="cuda"))
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    with torch.inference_mode():
        assert model.eval()(images).shape == (4, 10)
    assert simulation.unknowns.doubt() is None


def test_running_means_of_unknown_images_are_unknown(simulation: Simulation) -> None:
    layer, images = torch.nn.BatchNorm2d(64).cuda(), torch.randn(8, 64, 28, 28, device="cuda")
    layer.eval()(images)
    assert layer.running_mean is not None
    assert torch.ops.memleak_card.knows(layer.running_mean)
    layer.train()(images)
    assert not torch.ops.memleak_card.knows(layer.running_mean)


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("size", [(4, 3, 5, 5), (4, 3, 5), (4, 3), (2, 3, 2, 2, 2)])
def test_small_ones_are_computed(simulation: Simulation, size: tuple[int, ...], trains: bool) -> None:
    simulation.unknowns.reset()
    kinds = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d, 5: torch.nn.BatchNorm3d}
    images = torch.arange(float(torch.Size(size).numel())).reshape(size)
    found = []
    for device in ("cpu", "cuda"):
        layer = kinds[len(size)](3).to(device).train(trains)
        given = images.clone().to(device).requires_grad_()
        result = layer(given)
        (result * images.to(device)).sum().backward()
        found.append([result, layer.running_mean, layer.running_var, layer.weight.grad, given.grad])
    for ours, on_card in zip(*found, strict=True):
        assert torch.ops.memleak_card.knows(on_card)
        theirs = on_card.cpu()
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-2)
    assert simulation.unknowns.doubt() is None
