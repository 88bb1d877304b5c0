"""Which values are found not to be finite, in whatever a tensor may be, and at which index the first one is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed
from torch import nn

import pytest_memleak
from pytest_memleak.meters import shared
from pytest_memleak.values.found import Bad
from pytest_memleak.values.layout import PIECE, index_at, pieces
from pytest_memleak.values.named import of_anything, of_module, of_optimizer
from pytest_memleak.values.scan import scan

NAN, INF = math.nan, math.inf
FLOATS = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
)


def only(tensor: torch.Tensor) -> Bad:
    (bad,) = scan(of_anything(tensor)).bad
    return bad


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_nan_is_found_in_each_type(dtype: torch.dtype) -> None:
    tensor = torch.ones(7, 5).to(dtype)
    assert scan(of_anything(tensor)).bad == []
    tensor[4, 2] = NAN
    bad = only(tensor)
    assert (bad.nans, bad.infinities, bad.first, bad.count, bad.shape) == (1, 0, (4, 2), 35, (7, 5))
    assert bad.dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [INF, -INF])
def test_infinities_count_but_in_buffers(dtype: torch.dtype, value: float) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.tensor([1.0, value, 0.0]).to(dtype), requires_grad=False)
    module.register_buffer("mask", torch.tensor([value, 1.0, value]).to(dtype))
    module.register_buffer("fleeting", torch.tensor([value, NAN]).to(dtype), persistent=False)
    weight, fleeting = scan(of_module(module)).bad
    assert (weight.name, weight.nans, weight.infinities, weight.first) == ("weight", 0, 1, (1,))
    assert (fleeting.kind, fleeting.nans, fleeting.infinities, fleeting.first) == ("non-persistent buffer", 1, 0, (1,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("place", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 2])
def test_the_first_index_at_the_borders_of_pieces(dtype: torch.dtype, place: int) -> None:
    tensor = torch.zeros(2 * PIECE + 3).to(dtype)
    tensor[place:] = NAN
    bad = only(tensor)
    assert (bad.first, bad.nans) == ((place,), len(tensor) - place)


@pytest.mark.parametrize("where", [(0, 0, 0), (1, 1023, 700), (2, 0, 1), (2, 1023, 1023)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_first_index_however_it_is_laid_out(where: tuple[int, int, int], order: tuple[int, int, int]) -> None:
    whole = torch.zeros(3, 1024, 1024)
    back = [order.index(dim) for dim in range(3)]
    for tensor in (whole.permute(order).contiguous().permute(back), torch.zeros(6, 1025, 2048)[::2, :1024, ::2]):
        assert tensor.shape == whole.shape
        tensor[where] = NAN
        tensor[2, 1023, 1023] = NAN
        assert only(tensor).first == where


def test_an_index_beyond_32_bits() -> None:
    tensor = torch.zeros(2**31 + 11, dtype=torch.bfloat16)  # 4 GiB of fresh pages, which nobody fills
    tensor[2**31 + 7] = NAN
    assert only(tensor).first == (2**31 + 7,)
    assert index_at(2**40 + 5, (2**20, 2**21)) == (2**19, 5)


def test_what_is_expanded_is_read_once_and_counted_in_full() -> None:
    tensor = torch.zeros(1, 7).expand(2**33, 7)
    tensor[0, 3] = NAN
    bad = only(tensor)
    assert (bad.count, bad.nans, bad.first) == (7 * 2**33, 2**33, (0, 3))


def test_empty_ones_scalars_and_whole_numbers() -> None:
    fine = [torch.empty(0), torch.empty(3, 0, 2), torch.tensor(1.0), torch.arange(3), torch.tensor(True)]
    found = scan(of_anything(fine))
    assert (found.bad, found.looked["tensor"]) == ([], 3)
    bad = only(torch.tensor(NAN))
    assert (bad.shape, bad.first, bad.count) == ((), (), 1)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of layouts in beta and of old ones
def test_complex_and_sparse_ones() -> None:
    number = torch.zeros(3, 5, dtype=torch.complex64)
    torch.view_as_real(number)[2, 1, 1] = NAN
    for tensor, first in ((number, (2, 1)), (number.conj(), (2, 1)), (number.t(), (1, 2))):
        bad = only(tensor)
        assert (bad.dtype, bad.first, bad.nans) == ("complex64", first, 1)
    dense = torch.tensor([[0.0, 1.0], [NAN, 0.0]])
    assert only(dense.to_sparse()).nans == only(dense.to_sparse_csr()).nans == 1
    assert scan(of_anything(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))).unreadable == []
    assert scan(of_anything(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))).unreadable == ["the tensor"]


def test_tied_weights_are_told_once() -> None:
    first, second, third = (nn.Linear(4, 4, bias=False) for _ in range(3))
    second.weight = first.weight
    third.weight = nn.Parameter(first.weight.data)  # another parameter on the same memory
    first.weight.data.fill_(NAN)
    found = scan(of_module(nn.Sequential(first, second, third)))
    assert ([bad.name for bad in found.bad], found.looked["parameter"]) == (["0.weight"], 1)


def test_what_has_no_values_is_told_and_not_passed() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))
    model[0].to("meta")
    assert scan(of_module(model)).unmaterialized == ["0.weight", "0.bias", "1.weight", "1.bias"]
    with FakeTensorMode():
        fake = torch.empty(3)
    assert scan(of_anything({"fake": fake})).unknown == ["fake"]


def test_quantization_state_is_looked_into() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(64, 64, bias=False, compress_statistics=True).to("cpu")
    assert layer.weight.quant_state is not None
    assert scan(of_module(layer)).bad == []
    state = layer.weight.quant_state
    broken = state.state2.absmax if state.state2 is not None else state.absmax
    broken[0] = NAN
    (bad,) = scan(of_module(layer)).bad
    assert (bad.kind, bad.name.startswith("weight.quant_state.")) == ("quantization state", True)


def test_gradients_and_what_optimizers_keep() -> None:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    optimizer.state[layer.bias]["exp_avg_sq"][1] = INF
    assert layer.weight.grad is not None
    layer.weight.grad[0, 1] = NAN
    assert scan(of_module(layer)).bad == []
    assert [bad.name for bad in scan(of_module(layer, gradients=True)).bad] == ["weight.grad"]
    (bad,) = scan(of_optimizer(optimizer)).bad
    assert (bad.name, bad.first) == ("AdamW.state[1]['exp_avg_sq']", (1,))


def test_bad_ones_come_in_the_order_of_the_model() -> None:
    tensors = [torch.tensor([NAN]).to(dtype) for dtype in (torch.float32, torch.float16, torch.float32, torch.float64)]
    assert [bad.name for bad in scan(of_anything(tensors)).bad] == ["[0]", "[1]", "[2]", "[3]"]


def test_more_tensors_than_are_fetched_at_once() -> None:
    tensors = [torch.ones(3) for _ in range(300)]
    for number in (0, 127, 128, 299):
        tensors[number][2] = NAN
    assert [bad.name for bad in scan(of_anything(tensors)).bad] == ["[0]", "[127]", "[128]", "[299]"]


@pytest.mark.parametrize("layout", ["dense", "transposed", "strided", "float8"])
def test_the_look_takes_little_memory_however_large_the_tensor(layout: str) -> None:
    memory = shared.cpu_memory()
    if not memory.can_enforce:
        pytest.skip("needs the engine that sees each allocation")
    tensor = torch.zeros(4096, 4096)
    given = {
        "dense": tensor,
        "transposed": tensor.t(),
        "strided": tensor[:, 1:],
        "float8": tensor.to(torch.float8_e4m3fn),
    }[layout]
    before = memory.now()["allocated"]
    memory.take_peaks()
    scan(of_anything(given))
    assert memory.take_peaks()["allocated"] - before <= (4096 if layout in ("dense", "transposed") else 3 * 4 * PIECE)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_pieces_are_the_values_in_their_order(size: int) -> None:
    whole = torch.arange(4 * 5 * 6.0).view(4, 5, 6)
    for tensor in (whole, whole[0].t(), whole.permute(2, 0, 1), whole[::2, :, 1::2], whole[0, 0, 0], whole[:0]):
        found = list(pieces(tensor, size))
        assert all(piece.dim() == 1 and len(piece) <= size for piece in found)
        assert torch.cat([*found, torch.empty(0)]).tolist() == tensor.reshape(-1).tolist()


@pytest.fixture
def world_of_one() -> Iterator[None]:
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    distributed: Any = torch.distributed
    store = distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_of_a_dtensor_the_local_shard(world_of_one: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    tensor = distribute_tensor(torch.ones(6, 2), init_device_mesh("cpu", (1,)), [Shard(0)])
    tensor.to_local()[4, 1] = NAN
    bad = only(tensor)
    assert (bad.shard, bad.first, bad.shape) == (True, (4, 1), (6, 2))


def test_neither_a_model_nor_a_tensor() -> None:
    for wrong in (SimpleNamespace(), "model", [torch.ones(1), 3]):
        with pytest.raises(ValueError, match="neither a module nor a tensor"):
            pytest_memleak.no_nan(wrong)
