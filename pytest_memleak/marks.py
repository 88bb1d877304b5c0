"""The markers: one function each, whose signature is what users may write and whose docstring is what --markers shows.

A mistake is a `BadInput` that names the bad text; which of a test's markers count, and where they stand, is for
`promises` to say.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from threading import TIMEOUT_MAX
from typing import TypeVar

import pytest

from pytest_memleak.budget.expression import Expression, parse
from pytest_memleak.budget.sizes import format_size, parse_size
from pytest_memleak.budget.term import Term
from pytest_memleak.errors import BadInput
from pytest_memleak.plan import (
    HOST_LEAK_FLOOR,
    MIN_HOST_REPEATS,
    TOGETHER,
    Cap,
    HostPeakBudget,
    LeakBudget,
    NoNan,
    PeakBudget,
    Ranks,
    Same,
    Upstream,
    Warmed,
)

PEAK_KINDS = ("allocated", "requested", "reserved", "driver")
LEAK_KINDS = ("allocated", "requested", "reserved", "host")

WARM_UPS = ("skipped", "fits", "ran")

P = TypeVar("P")
Marker = Callable[..., Callable[[str], P]]
"""Called with what a user wrote, and then with where it stands: one promise."""


def max_peak(
    limit: str | int,
    *,
    of: str | None = None,
    device: str | int | None = None,
    rank: int | str | None = None,
    model: object = None,
    warmup: bool = True,
) -> Callable[[str], PeakBudget]:
    """The peak of the card's memory while the test runs, in absolute bytes, must not exceed LIMIT.

    LIMIT is a size ("12G") or an expression over the model's sizes ("0.6 * fp16_size + 200MiB"). of: allocated
    (default), requested, reserved, driver. device: one device ("cuda:1") instead of each. rank: only
    that rank's, or "max" or "sum" of all ranks; default: each rank's own.
    model: whose sizes ("fixture:llama", a path, a config); default: the one the test watches, loads or builds.
    warmup=False: what transformers' allocator warm-up asks for while it runs is not counted (allocated, requested).
    """
    one_of("of", of, PEAK_KINDS)
    if device is not None and (isinstance(device, bool) or not isinstance(device, str | int)):
        raise BadInput(f'device={device!r} is not a device: write "cuda:1" or 1')
    _check_rank(rank)
    if not isinstance(warmup, bool):
        raise BadInput(f"warmup={warmup!r}: write True or False")
    if not warmup and of in ("reserved", "driver"):
        raise BadInput(f"warmup=False cannot be had for of={of!r}: what a warm-up has reserved stays reserved")
    expression = _limit_of(limit, model)
    return lambda source: PeakBudget(expression, source, of=of, device=device, rank=rank, model=model, warmup=warmup)


def max_host_peak(
    limit: str | int, *, rank: int | str | None = None, model: object = None
) -> Callable[[str], HostPeakBudget]:
    """The growth of the process's committed memory while the test runs must not exceed LIMIT (sampled).

    rank: as of max_peak; "sum" is what all ranks take of a machine.
    """
    _check_rank(rank)
    expression = _limit_of(limit, model)
    return lambda source: HostPeakBudget(expression, source, model=model, rank=rank)


def max_leak(
    limit: str | int = 0, *, of: str | None = None, repeat: int = 1, warmups: int | None = None
) -> Callable[[str], LeakBudget]:
    """What the test still holds after its fixtures are torn down must not exceed LIMIT (default: nothing).

    repeat: run it that often with fresh fixtures and judge the growth per run; warmups: runs before, not counted
    (default 1 with repeat, else 0). of="host": committed memory that grows with every run, native leaks too
    (repeat >= 3).
    """
    one_of("of", of, LEAK_KINDS)
    for name, value, least in (("repeat", repeat, 1), ("warmups", warmups, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise BadInput(f"{name}={value!r} is not a number of runs: write {least}, {least + 1}, …")
    expression = parse(limit, zero=True)
    if of == "host":
        check_host_leak(expression, repeat)
    runs_before = warmups if warmups is not None else int(repeat > 1)
    return lambda source: LeakBudget(expression, source, of=of, repeat=repeat, warmups=runs_before)


def gpu_cap(size: str | int, *, told: bool = True, free: str | int | None = None) -> Callable[[str], Cap]:
    """The test's card has SIZE bytes: more is refused with torch's own OutOfMemoryError, and whoever asks is told so.

    told=False: refused only, as set_per_process_memory_fraction leaves it. free="6G": the rest is occupied by somebody
    else.
    """
    if not isinstance(told, bool):
        raise BadInput(f"told={told!r}: write True or False")
    total = parse_size(size)
    room = None if free is None else parse_size(free)
    if room is not None and room > total:
        raise BadInput(f"free={free!r} is more than the card's {size!r}")
    return lambda source: Cap(total, source, told=told, free=room)


def allocator_warmup(expected: str) -> Callable[[str], Warmed]:
    """What becomes of transformers' caching_allocator_warmup, one large request before the weights are loaded.

    "fits": it asks for no more than is free and than the card's cap leaves. "skipped": it asks for nothing in a load
    that was seen. "ran": it asks for some, and gets it.
    """
    if expected not in WARM_UPS:
        raise BadInput(f"{expected!r} is not one of {', '.join(WARM_UPS)}")
    return lambda source: Warmed(expected, source)


def ranks(
    n: int, *, backend: str | bool | None = None, nnodes: int = 1, timeout: float | None = None
) -> Callable[[str], Ranks]:
    """The test runs on N processes at once, each with fixtures of its own; its other promises are each rank's.

    backend: of their default process group, which is there before the fixtures are (default: NCCL and gloo on GPUs,
    gloo on CPUs; False: the test makes it itself). nnodes: how many machines are played on this one. timeout: seconds
    until ranks that have not ended count as hung (default: --memleak-ranks-timeout). Under a torchrun of N processes
    the test joins them, and starts none.
    """
    for name, value in (("n", n), ("nnodes", nnodes)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadInput(
                f"{name}={value!r} is not a number of {'ranks' if name == 'n' else 'machines'}: write 1, 2, …"
            )
    if n % nnodes:
        raise BadInput(f"{n} ranks are not to be shared alike by nnodes={nnodes}")
    if backend is True or not (backend is None or backend is False or (isinstance(backend, str) and backend)):
        raise BadInput(f'backend={backend!r} is not a backend: write "gloo", "nccl", or False for none')
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if timeout is not None and not (is_number and 0 < timeout <= TIMEOUT_MAX):  # a clock takes no inf, and no NaN
        raise BadInput(f"timeout={timeout!r} is not a number of seconds")
    return lambda source: Ranks(n, source, backend, nnodes, timeout)


def no_nan(*, poison: bool = True, gradients: bool = False, model: object = None) -> Callable[[str], NoNan]:
    """What the test loads or builds holds no NaN: parameters (and no infinities), buffers, quantization states.

    Judged of each model as it was last: when it ended, or when the body had. poison: what is uninitialized is filled
    with NaN, so that it shows every time. gradients: nor do losses that backward() is called on, gradients at each step
    of an optimizer and at the end, and what optimizers keep. model: only this one ("fixture:NAME", or a module).
    """
    for name, value in (("poison", poison), ("gradients", gradients)):
        if not isinstance(value, bool):
            raise BadInput(f"{name}={value!r}: write True or False")
    named = isinstance(model, str) and model.startswith("fixture:") and len(model) > len("fixture:")
    if model is not None and not named and not hasattr(model, "named_modules"):
        raise BadInput(f'model={model!r:.200} has no values to look into: write "fixture:NAME", or give a module')
    return lambda source: NoNan(source, poison=poison, gradients=gradients, model=model)


def same_on_all_ranks() -> Callable[[str], Same]:
    """Buffers and parameters that are not sharded hold what rank 0's do, bit by bit, when the body has ended."""
    return Same


def memleak_fix(*names: str) -> Callable[[str], Upstream]:
    """While the test runs, upstream is mended by the reference fixes of these NAMES, where it needs that."""
    _known_fixes(names, "memleak_fix")
    return lambda source: Upstream(names, source)


def memleak_bug(*names: str, flavour: str | None = None) -> Callable[[str], Upstream]:
    """While the test runs, upstream has the bugs of these NAMES, whatever its release: to see a test fail.

    flavour: which of the ways in which upstream had it, where there were several.
    """
    _known_fixes(names, "memleak_bug")
    if flavour is not None:
        if not isinstance(flavour, str):
            raise BadInput(f"flavour={flavour!r} is not a name")
        if len(names) > 1:
            raise BadInput(f"flavour={flavour!r} of which? One name goes with a flavour")
        _check_flavour(names[0], flavour)
    return lambda source: Upstream(names, source, flavour)


def _known_fixes(names: tuple[str, ...], marker: str) -> None:
    from pytest_memleak import fixes

    known = fixes.names()
    if not names:
        raise BadInput(f"of which? Write {marker}({known[0]!r}); there are {', '.join(known)}")
    for name in names:
        if name not in known:
            raise BadInput(f"there is no fix {name!r}; there are {', '.join(known)}")


def _check_flavour(name: str, flavour: str) -> None:
    from pytest_memleak import fixes

    fixes.find(name).flavour(flavour)


def memleak_off() -> Callable[[str], bool]:
    """No default limit from flags, environment or ini applies to this test, and no baseline; its own markers do."""
    return lambda source: True


MARKERS: tuple[Marker[object], ...] = (
    max_peak,
    max_host_peak,
    max_leak,
    gpu_cap,
    allocator_warmup,
    ranks,
    no_nan,
    same_on_all_ranks,
    memleak_fix,
    memleak_bug,
    memleak_off,
)
NAMES = tuple(marker.__name__ for marker in MARKERS)


def own_marks(item: pytest.Item) -> tuple[pytest.Mark, ...]:
    """This plugin's markers on the item itself."""
    return tuple(mark for mark in item.own_markers if mark.name in NAMES)


def help_lines() -> Iterator[str]:
    """One entry of --markers each, from signature and docstring."""
    for marker in MARKERS:
        text = " ".join((inspect.getdoc(marker) or "").split())
        yield f"{marker.__name__}({shown(inspect.signature(marker))}): {text}"


def shown(signature: inspect.Signature) -> str:
    """The signature as a user writes it, without types."""
    written = []
    for parameter in signature.parameters.values():
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        written.append(f"{parameter.name}{default}")
    return ", ".join(written)


def _limit_of(limit: str | int, model: object) -> Expression:
    expression = parse(limit)
    if model is not None and not expression.names:
        raise BadInput(f"model={model!r} has no effect: the limit {limit!r} names no size of a model")
    return expression


def _check_rank(rank: object) -> None:
    if rank is not None and rank not in TOGETHER and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 0):
        raise BadInput(f'rank={rank!r} is not a rank: write 0, 1, …, "max" or "sum"')


def one_of(name: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise BadInput(f"{name}={value!r} is not one of {', '.join(allowed)}")


def check_host_leak(limit: Expression, repeat: int) -> None:
    """Host memory is counted in pages and judged on what persists: it needs some runs, and a limit above its noise."""
    if repeat < MIN_HOST_REPEATS:
        raise BadInput(
            f'repeat={repeat} is too few for of="host": growth that persists needs repeat={MIN_HOST_REPEATS} or more'
        )
    if not limit.names and limit.evaluate(_no_names)[0] < HOST_LEAK_FLOOR:
        raise BadInput(
            f"{limit.text!r} is tighter than committed host memory can be told: allow "
            f"{format_size(HOST_LEAK_FLOOR)} or more"
        )


def _no_names(name: str) -> Term:
    raise AssertionError(f"a limit without names asked for {name}")
