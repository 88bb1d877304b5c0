"""What a card refuses to do is refused on the simulated one, in the words that an H200 had for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pytest_memleak.cards.simulated.simulation import Simulation
from pytest_memleak.support import at_least

Program = Callable[[], Any]
HALF, BF16, LONG, BOOL = torch.float16, torch.bfloat16, torch.int64, torch.bool

pytestmark = pytest.mark.usefixtures("simulation")


def ones(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(*size, dtype=dtype, device="cuda")


def large(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Nobody knows what is in it."""
    return torch.randn(*(size or (1024, 1024)), dtype=dtype, device="cuda")


def far(*size: int) -> torch.Tensor:
    """Indices for more than there is."""
    return torch.full(size or (1,), 99_999, device="cuda")


WRONG_TYPES: dict[str, tuple[Program, str]] = {
    "product": (
        lambda: ones(9, 9) @ ones(9, 9, dtype=HALF),
        "expected mat1 and mat2 to have the same dtype, but got: float != c10::Half",
    ),
    "product of unknown values": (
        lambda: large() @ large(dtype=HALF),
        "expected mat1 and mat2 to have the same dtype, but got: float != c10::Half",
    ),
    "linear": (
        lambda: torch.nn.Linear(1024, 8, device="cuda")(large(4, 64, 1024, dtype=BF16)),
        "mat1 and mat2 must have the same dtype, but got BFloat16 and Float",
    ),
    "linear without a bias": (
        lambda: torch.nn.Linear(1024, 8, bias=False, device="cuda")(large(64, 1024, dtype=BF16)),
        "expected mat1 and mat2 to have the same dtype, but got: c10::BFloat16 != float",
    ),
    "bias": (
        lambda: F.linear(ones(9, 9), ones(9, 9), ones(9, dtype=HALF)),
        "self and mat2 must have the same dtype, but got Half and Float",
    ),
    "several products": (
        lambda: torch.bmm(ones(2, 9, 9), ones(2, 9, 9, dtype=HALF)),
        "expected scalar type Float but found Half",
    ),
    "einsum": (
        lambda: torch.einsum("ij,jk", ones(9, 9), ones(9, 9, dtype=BF16)),
        "expected scalar type Float but found BFloat16",
    ),
    "convolution": (
        lambda: F.conv2d(ones(1, 3, 8, 8, dtype=HALF), ones(4, 3, 3, 3)),
        "Input type (torch.cuda.HalfTensor) and weight type (torch.cuda.FloatTensor) should be the same",
    ),
    "convolution's bias": (
        lambda: F.conv2d(ones(1, 3, 8, 8), ones(4, 3, 3, 3), ones(4, dtype=HALF)),
        "Input type (float) and bias type (c10::Half) should be the same",
    ),
    "convolution of integers": (
        lambda: F.conv1d(ones(1, 3, 9, dtype=LONG), ones(2, 3, 3, dtype=LONG)),
        "getCudnnDataTypeFromScalarType() not supported for Long",
    ),
    "layer norm": (
        lambda: F.layer_norm(large(64, 1024, dtype=HALF), (1024,), ones(1024)),
        "expected scalar type Half but found Float",
    ),
    "group norm": (
        lambda: F.group_norm(ones(2, 4, 9, dtype=HALF), 2, ones(4)),
        "expected scalar type Half but found Float",
    ),
    "values for indices": (
        lambda: ones(9).index_put((ones(1, dtype=LONG),), ones(1, dtype=HALF)),
        "Index put requires the source and destination dtypes match, got Float for the destination and Half",
    ),
    "mask": (
        lambda: ones(9).masked_fill(ones(9, dtype=LONG), 1.0),
        "masked_fill only supports boolean masks, but got dtype Long",
    ),
    "binary cross entropy": (
        lambda: F.binary_cross_entropy(ones(9), ones(9, dtype=HALF)),
        "Found dtype Half but expected Float",
    ),
    "weights of a draw": (
        lambda: torch.multinomial(ones(9, dtype=LONG), 2),
        "multinomial only supports floating-point dtypes for input, got: Long",
    ),
    "indices of a card for the CPU": (
        lambda: torch.ones(10)[ones(3, dtype=LONG)],
        "indices should be either on cpu or on the same device as the indexed tensor (cpu)",
    ),
}
NOT_IMPLEMENTED: dict[str, tuple[Program, str]] = {
    "product": (lambda: ones(9, 9, dtype=LONG) @ ones(9, 9, dtype=LONG), "\"addmm_cuda\" not implemented for 'Long'"),
    "of bools": (lambda: ones(9, 9, dtype=BOOL) @ ones(9, 9, dtype=BOOL), "\"addmm_cuda\" not implemented for 'Bool'"),
    "several": (
        lambda: ones(2, 9, 9, dtype=LONG) @ ones(2, 9, 9, dtype=LONG),
        "\"baddbmm_cuda\" not implemented for 'Long'",
    ),
    "vectors": (lambda: ones(9, dtype=LONG) @ ones(9, dtype=LONG), "\"dot\" not implemented for 'Long'"),
    "halves": (lambda: torch.linalg.cholesky(ones(9, 9, dtype=HALF)), "not implemented for 'Half'"),
}
OUT_OF_RANGE: dict[str, Program] = {
    "embedding": lambda: F.embedding(far(), ones(10, 4)),
    "embedding of unknown values": lambda: F.embedding(far(), large()),
    "positions": lambda: F.embedding(torch.arange(4096, device="cuda"), large()),
    "index": lambda: ones(10, 4)[far()],
    "negative index": lambda: ones(10, 4)[-far()],
    "index of unknown values": lambda: large()[:, far()],
    "written at an index": lambda: large().index_put_((far(),), ones(1)),
    "index_select": lambda: large().index_select(0, far()),
    "gather": lambda: large().gather(0, far(1, 1024)),
    "scatter": lambda: large().scatter(1, far(1, 1), 1.0),
    "added at an index": lambda: large().index_add_(0, far(), ones(1, 1024)),
    "label": lambda: F.cross_entropy(large(), far(1024)),
    "label of few": lambda: F.nll_loss(ones(4, 9), torch.tensor([1, 2, 3, 99], device="cuda")),
    "one hot": lambda: F.one_hot(far(2), 3),
    "probability": lambda: F.binary_cross_entropy(ones(9) * 5, ones(9)),
}
LEGAL: dict[str, Program] = {
    "types in attention's norms": lambda: F.rms_norm(ones(9, 9, dtype=HALF), (9,), ones(9)),
    "promotion": lambda: torch.addcmul(ones(9), ones(9, dtype=HALF), ones(9)),
    "losses of two types": lambda: F.mse_loss(ones(9), ones(9, dtype=HALF)),
    "search among halves": lambda: torch.bucketize(ones(2), ones(9, dtype=HALF)),
    "integers times integers": lambda: ones(9, dtype=LONG) * ones(9, dtype=LONG),
    "product of nothing": lambda: ones(0, 9, dtype=LONG) @ ones(9, 9, dtype=LONG),
    "8 bits": lambda: torch._int_mm(ones(64, 64, dtype=torch.int8), ones(64, 64, dtype=torch.int8)),
    "half a product": lambda: ones(9, 9, dtype=HALF) @ ones(9, 9, dtype=HALF),
    "half a convolution": lambda: F.conv2d(ones(1, 3, 8, 8, dtype=HALF), ones(4, 3, 3, 3, dtype=HALF)),
    "autocast": lambda: autocast(),
    "ignored labels": lambda: F.cross_entropy(ones(4, 9), torch.tensor([1, 2, -100, -100], device="cuda")),
    "last index": lambda: large()[torch.tensor([1023, -1024], device="cuda")],
    "indices of the CPU": lambda: large()[torch.tensor([1])],
    "number at a mask": lambda: large().masked_fill_(large() > 0, 0.0),
    "number at an index": lambda: ones(9).half().__setitem__(torch.tensor([1], device="cuda"), 2.0),
    "half a root": lambda: ones(9, dtype=HALF).sqrt().cumsum(0).softmax(0),
}


def autocast() -> None:
    with torch.autocast("cuda", torch.bfloat16):
        layer = torch.nn.Sequential(torch.nn.Linear(9, 9), torch.nn.LayerNorm(9), torch.nn.Linear(9, 9)).to("cuda")
        found = layer(ones(9, 9)).float() @ layer(ones(9, 9)).t() + F.conv1d(ones(1, 9, 9), ones(9, 9, 1))
    torch.autograd.backward(found.sum())


@pytest.mark.parametrize(("program", "words"), WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_types_that_do_not_fit(program: Program, words: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(words)):
        program()


@pytest.mark.parametrize(("program", "words"), NOT_IMPLEMENTED.values(), ids=NOT_IMPLEMENTED)
def test_types_that_kernels_do_without(program: Program, words: str) -> None:
    with pytest.raises(NotImplementedError, match=re.escape(words)):
        program()


@pytest.mark.parametrize("program", OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
def test_what_a_kernel_finds_while_it_runs(program: Program) -> None:
    with pytest.raises(getattr(torch, "AcceleratorError", RuntimeError), match=r"device-side assert triggered: .+"):
        program()


def test_a_matrix_that_cannot_be_factorized() -> None:
    with pytest.raises(RuntimeError, match="not positive-definite"):
        torch.linalg.cholesky(-torch.eye(3, device="cuda"))


if at_least(torch.__version__, "2.10"):  # the oldest release takes no other indices than int64
    LEGAL["int32 for gather"] = lambda: ones(9, 9).gather(0, ones(1, 9, dtype=torch.int32))


@pytest.mark.parametrize("program", LEGAL.values(), ids=LEGAL)
def test_what_a_card_takes(simulation: Simulation, program: Program) -> None:
    program()
    assert simulation.unknowns.doubt() is None
