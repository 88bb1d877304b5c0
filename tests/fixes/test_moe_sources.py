"""What a load collected, read expert by expert: the same values in the same order as upstream's own operations give."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
loader = pytest.importorskip("transformers.core_model_loading")

pytest.importorskip("bitsandbytes.nn.parametrize")

from pytest_memleak.fixes._moe_load import Loads
from pytest_memleak.fixes._moe_patches import _reading
from pytest_memleak.fixes._moe_sources import Reader, _together, pieces
from pytest_memleak.upstream.experts import ExpertParameter

EXPERTS, ROWS, COLUMNS = 4, 6, 8
Read = list[tuple[int, ...]]


def reader(tensor: Any, read: Read) -> Reader:
    def spawn(thing: Any, device: Any = None) -> Any:
        def job() -> Any:
            found = thing[...].clone()
            read.append(tuple(found.shape))
            return found

        return job

    return Reader(tensor, "cpu", spawn)


def mapping(collected: dict[str, list[Any]], operations: list[Any], read: Read) -> Any:
    """A converter of these, and what it makes of them as a whole."""
    made = SimpleNamespace(
        source_patterns=list(collected),
        target_patterns=["experts.w"],
        collected_tensors={name: [reader(one, read) for one in tensors] for name, tensors in collected.items()},
    )
    if operations:
        made.operations = operations
    return made


def whole(collected: dict[str, list[Any]], operations: list[Any], shape: Any) -> Any:
    values: dict[str, Any] = {name: list(tensors) for name, tensors in collected.items()}
    model = SimpleNamespace(get_parameter=lambda name: SimpleNamespace(shape=shape))
    for operation in operations:
        values = operation.convert(
            values,
            source_patterns=list(collected),
            target_patterns=["experts.w"],
            full_layer_name="experts.w",
            model=model,
            config=None,
            missing_keys=None,
        )
    (value,) = values.values()
    return value[0] if isinstance(value, list) else value


def stacks(*shape: int) -> Any:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def apart(rows: int, start: float = 0.0) -> list[Any]:
    return list((stacks(EXPERTS, rows, COLUMNS) + start).unbind())


def known(name: str, *arguments: Any, **others: Any) -> Any:
    found = getattr(loader, name, None)
    return None if found is None else lambda: found(*arguments, **others)


def stacked() -> Any:
    return loader.MergeModulelist(dim=0)


def beside() -> Any:
    return loader.Concatenate(dim=1)


WAYS = {
    "a matrix for each": ({"a": apart(ROWS)}, [stacked]),
    "gate and up for each": ({"a": apart(ROWS), "b": apart(ROWS, 500.0)}, [stacked, beside]),
    "of different heights": ({"a": apart(ROWS), "b": apart(2, 500.0)}, [stacked, beside]),
    "one stack": ({"a": [stacks(EXPERTS, ROWS, COLUMNS)]}, []),
    "two stacks": ({"a": [stacks(EXPERTS, ROWS, COLUMNS)], "b": [stacks(EXPERTS, 2, COLUMNS) + 500]}, [beside]),
    "a stack the other way round": (
        {"a": [stacks(EXPERTS, COLUMNS, ROWS)]},
        [known("Transpose", 1, 2)],
    ),
    "a stack that is the right way round": (
        {"a": [stacks(EXPERTS, ROWS, COLUMNS)]},
        [known("Transpose", 1, 2, check_dims=True)],
    ),
    "a stack that turns out to be the other way round": (
        {"a": [stacks(EXPERTS, COLUMNS, ROWS)]},
        [known("Transpose", 1, 2, check_dims=True)],
    ),
    "a stack with rows in turns": ({"a": [stacks(EXPERTS, ROWS, COLUMNS)]}, [known("Interleave", dim=1)]),
}


@pytest.mark.parametrize(("collected", "operations"), WAYS.values(), ids=WAYS)
def test_the_same_values_in_order(collected: dict[str, list[Any]], operations: list[Any]) -> None:
    if None in operations:
        pytest.skip("this release has no such operation")
    try:
        chain = [make() for make in operations]
    except TypeError:
        pytest.skip("this release's operation does not do that")
    turned = collected["a"][0].shape[-1] != COLUMNS
    rows = ROWS if turned else sum(tensors[0].shape[-2] for tensors in collected.values())
    shape = torch.Size([EXPERTS, rows, COLUMNS])
    read: Read = []
    found = pieces(mapping(collected, chain, read), "experts.w", shape, None, 2)
    assert found is not None
    values = torch.cat([piece.reshape(-1) for piece in found])
    assert torch.equal(values.view(shape), whole(collected, chain, shape))
    # Nothing larger than one expert was ever read.
    assert max(torch.Size(one).numel() for one in read) <= shape[1:].numel()


def test_pieces_come_one_by_one_as_long_as_they_are_whole_blocks() -> None:
    collected = {"a": apart(ROWS), "b": apart(2)}
    shape = torch.Size([EXPERTS, ROWS + 2, COLUMNS])

    def sizes(blocksize: int) -> list[int]:
        found = pieces(mapping(collected, [stacked(), beside()], []), "experts.w", shape, None, blocksize)
        assert found is not None
        return [piece.numel() for piece in found]

    assert sizes(16) == [48, 16] * EXPERTS
    assert sizes(32) == sizes(48) == [64] * EXPERTS


@pytest.mark.parametrize("room", [0, 4, 11, 12, 100])
def test_parts_come_together_as_far_as_there_is_room(room: int) -> None:
    parts = [torch.arange(start, start + 4.0).view(2, 2) for start in range(0, 20, 4)]
    sizes, values = [], []
    for one in _together(iter(parts), torch.device("cpu"), room):
        sizes.append(len(one))
        values += one.tolist()
    assert values == list(range(20))
    assert max(sizes) <= max(room, 4)
    assert sizes == {0: [4] * 5, 4: [4] * 5, 11: [8, 8, 4], 12: [12, 8], 100: [20]}[room]


def test_parts_that_are_not_contiguous() -> None:
    """As a checkpoint that was pickled may have them."""
    part = torch.arange(6.0).view(2, 3).t()
    (found,) = _together(iter([part]), torch.device("cpu"), 6)
    assert found.tolist() == part.reshape(-1).tolist()


def test_the_order_is_that_of_the_patterns() -> None:
    collected = {"up": apart(ROWS, 500.0), "gate": apart(ROWS)}
    made = mapping(collected, [stacked(), beside()], [])
    made.source_patterns = ["gate", "up"]
    found = pieces(made, "experts.w", torch.Size([EXPERTS, 2 * ROWS, COLUMNS]), None, 2)
    assert found is not None
    assert next(found)[0, 0] == 0.0


def test_an_expert_that_comes_to_another_size() -> None:
    collected = {"a": [stacks(EXPERTS, ROWS, COLUMNS)], "b": [stacks(EXPERTS, 3, COLUMNS)]}
    found = pieces(mapping(collected, [beside()], []), "experts.w", torch.Size([EXPERTS, 8, COLUMNS]), None, 2)
    assert found is not None
    with pytest.raises(ValueError, match=r"comes to \(1, 9, 8\), where the model has \(1, 8, 8\)"):
        next(found)


def test_no_pool_reads_ahead() -> None:
    """Releases before 5.4 give one, whose threads are faster than the quantizing."""
    given: list[Any] = []

    def spawn_materialize(thread_pool: Any, tensor: Any, device: Any = None, dtype: Any = None) -> Any:
        given.append(thread_pool)
        return lambda: tensor[...]

    loads = Loads()
    stack = torch.nn.Parameter(stacks(2, 2, 2))
    loads.innermost.experts["w"] = ExpertParameter("", "w", torch.nn.Module(), stack)
    read = _reading(loads, spawn_materialize)(object(), stacks(2, 2), "cpu")
    assert given == []
    assert torch.equal(read(), stacks(2, 2))
    assert given == [None]


class Unheard:
    dim = 0

    def convert(self, values: Any, **others: Any) -> Any:
        return values


ODD = {
    "operations that nobody knows": ({"a": apart(ROWS)}, [Unheard()]),
    "experts put one below the other": ({"a": [stacks(EXPERTS, ROWS, COLUMNS)]}, [loader.Concatenate(dim=0)]),
    "too few experts": ({"a": apart(ROWS)[1:]}, [stacked()]),
    "experts of different sizes": ({"a": [*apart(ROWS)[1:], torch.zeros(2, COLUMNS)]}, [stacked()]),
    "another width": ({"a": [one[:, 1:] for one in apart(ROWS)]}, [stacked()]),
    "another stack": ({"a": [stacks(EXPERTS, ROWS, COLUMNS + 1)]}, []),
}


@pytest.mark.parametrize(("collected", "operations"), ODD.values(), ids=ODD)
def test_what_cannot_be_read_so(collected: dict[str, list[Any]], operations: list[Any]) -> None:
    made = mapping(collected, operations, [])
    assert pieces(made, "experts.w", torch.Size([EXPERTS, ROWS, COLUMNS]), None, 2) is None


def test_several_targets_or_readers_of_somebody_else() -> None:
    shape = torch.Size([EXPERTS, ROWS, COLUMNS])
    made = mapping({"a": apart(ROWS)}, [stacked()], [])
    made.target_patterns.append("experts.v")
    assert pieces(made, "experts.w", shape, None, 2) is None
    made = mapping({"a": apart(ROWS)}, [stacked()], [])
    made.collected_tensors["a"][0] = lambda: torch.zeros(ROWS, COLUMNS)
    assert pieces(made, "experts.w", shape, None, 2) is None
