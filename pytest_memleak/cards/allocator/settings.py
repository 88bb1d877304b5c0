"""What PYTORCH_CUDA_ALLOC_CONF (or PYTORCH_ALLOC_CONF) says, as far as it changes the accounting."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_memleak.cards.allocator.rules import INTERVALS, LARGE_SEGMENT, MIB, UNLIMITED
from pytest_memleak.errors import BadInput

# In the order in which torch's CUDA allocator looks for them.
VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")

WITHOUT_EFFECT = frozenset(
    {
        "release_lock_on_cudamalloc",
        "release_lock_on_hipmalloc",
        "pinned_use_cuda_host_register",
        "pinned_use_hip_host_register",
        "pinned_num_register_threads",
        "pinned_use_background_threads",
        "pinned_reserve_segment_size_mb",
        "pinned_max_round_threshold_mb",
        "pinned_max_cached_size_mb",
        "pinned_free_catch_all",
        "graph_capture_record_stream_reuse",
        # It refuses where the card would have refused a moment later.
        "throw_on_cudamalloc_oom",
    }
)
"""Options that torch knows and that leave sizes, addresses and refusals of device memory as they are."""


@dataclass(frozen=True)
class Settings:
    max_split: int = UNLIMITED
    max_extra: int = LARGE_SEGMENT
    """How much larger than its request a block may be that is too large to be split."""
    large_segment: int = LARGE_SEGMENT
    expandable: bool = False
    divisions: tuple[int, ...] | None = None
    collect_above: float = 0.0
    """The part of the cap above which old cached blocks are given back early."""
    fraction: float | None = None
    """The part of the card that may be reserved, where the text sets one."""


def from_environment(environment: Mapping[str, str]) -> Settings:
    for variable in VARIABLES:
        if variable in environment:
            try:
                return parse(environment[variable])
            except BadInput as error:
                raise error.located(variable) from None
    return Settings()


def parse(text: str) -> Settings:
    """Reads ``max_split_size_mb:128,expandable_segments:True``; what torch would not take, this does not either."""
    found: dict[str, Any] = {}
    for name, value in _options(text):
        if name in WITHOUT_EFFECT:
            continue
        if name == "backend":
            if value != "native":
                raise BadInput(f"{name}:{value}: only torch's own caching allocator is simulated: use backend:native")
        elif name == "max_split_size_mb":
            found["max_split"] = _megabytes(name, value, least=LARGE_SEGMENT // MIB)
        elif name == "max_non_split_rounding_mb":
            found["max_extra"] = _megabytes(name, value, least=LARGE_SEGMENT // MIB)
        elif name == "large_segment_size_mb":
            found["large_segment"] = _megabytes(name, value, least=LARGE_SEGMENT // MIB)
        elif name == "expandable_segments":
            if value not in ("True", "False"):
                raise BadInput(f"{name}:{value}: it is True or False")
            found["expandable"] = value == "True"
        elif name == "garbage_collection_threshold":
            found["collect_above"] = _part(name, value)
        elif name == "per_process_memory_fraction":
            found["fraction"] = _part(name, value, whole=True)
        elif name == "roundup_power2_divisions":
            found["divisions"] = _divisions(name, value)
        else:
            raise BadInput(f"{name!r} is no option of torch's CUDA allocator (in {text!r})")
    return Settings(**found)


def _options(text: str) -> list[tuple[str, str]]:
    """The pairs of `text`, where a value in brackets may hold commas and colons."""
    text = "".join(text.split())
    # A trailing comma is what torch takes too.
    whole = re.fullmatch(r"(?:\w+:(?:\[[^\[\]]*\]|[^,:\[\]]+)(?:,|$))*", text)
    if whole is None:
        raise BadInput(f"{text!r} cannot be read: it is a list of name:value, separated by commas")
    return re.findall(r"(\w+):(\[[^\[\]]*\]|[^,]+)", text)


def _megabytes(name: str, value: str, least: int) -> int:
    if not value.isdecimal() or int(value) < least:
        raise BadInput(f"{name}:{value}: it is a whole number of MiB, {least} or more")
    return min(int(value) * MIB, UNLIMITED)


def _part(name: str, value: str, whole: bool = False) -> float:
    try:
        part = float(value)
    except ValueError:
        part = -1.0
    if not (0 <= part <= 1 if whole else 0 < part < 1):
        raise BadInput(f"{name}:{value}: it is a number between 0 and 1")
    return part


def _divisions(name: str, value: str) -> tuple[int, ...]:
    """``4`` for every size, or ``[256:1,512:2,>:8]`` for sizes (in MiB) up to each."""
    if not value.startswith("["):
        return (_power(name, value),) * INTERVALS
    divisions = [0] * INTERVALS
    last = None
    for entry in filter(None, value[1:-1].split(",")):
        size, colon, parts = entry.partition(":")
        if not colon:
            raise BadInput(f"{name}:{value}: {entry!r} is not size:divisions")
        number = _power(name, parts, zero=True)
        if size == ">":
            first = 0 if last is None else last
            divisions[first:] = [number] * (INTERVALS - first)
            continue
        index = min(_power(name, size).bit_length() - 1, INTERVALS - 1)
        if last is None:
            divisions[:index] = [number] * index
        divisions[index] = number
        last = index
    return tuple(divisions)


def _power(name: str, value: str, zero: bool = False) -> int:
    number = int(value) if value.isdecimal() else -1
    if number < 0 or number & (number - 1) or (number == 0 and not zero):
        raise BadInput(f"{name}:{value}: it is a power of two{' or 0' if zero else ''}")
    return number
