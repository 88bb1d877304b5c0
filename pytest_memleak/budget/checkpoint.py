"""What a checkpoint's safetensors headers say. Tensor data is never read, and pickles are never opened."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_memleak.errors import BadInput

_LARGEST_HEADER = 100_000_000  # the format's own limit
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint: ``BF16``, its shape, the bytes it takes in the file."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        return self.dtype.startswith(("F", "BF"))


def read_checkpoint(path: Path) -> dict[str, Stored]:
    """The tensors of a folder or a ``.safetensors`` file by name; none for a folder with a config and no weights."""
    if path.is_file():
        return read_headers([path])
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    # The order in which transformers looks.
    if single.is_file():
        return read_headers([single])
    if index.is_file():
        return _read_index(index)
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return read_headers(found)
    if found:
        names = ", ".join(file.name for file in found)
        raise BadInput(f"{path} has several weights files and no model.safetensors.index.json; name one: {names}")
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise BadInput(f"{path} holds only pickled weights ({pickles[0]}), which are never opened; save safetensors")
    if not (path / "config.json").is_file():
        raise BadInput(f"{path} is no checkpoint: it has no model.safetensors, no index of one and no config.json")
    return {}


def read_headers(files: list[Path]) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    for file in files:
        tensors |= _read_header(file)
    return tensors


def read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise BadInput(f"{file} cannot be read: it holds no JSON object")
    return content


def _read_index(index: Path) -> dict[str, Stored]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise BadInput(f"{index} has no weight_map of tensors to files")
    names = sorted(set(places.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise BadInput(f"{index} names {len(missing)} files that are not there: {', '.join(missing[:3])}")
    tensors = read_headers([index.parent / name for name in names])
    absent = sorted(set(places) - set(tensors))
    if absent:
        raise BadInput(f"{index} names {len(absent)} tensors that no file holds: {', '.join(absent[:3])}")
    return {name: tensors[name] for name in places}


def _read_header(file: Path) -> dict[str, Stored]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            room = size - 8
            if not 2 <= length <= min(room, _LARGEST_HEADER):
                raise BadInput(f"{file} is no safetensors file, or is cut short: its header would be {length:,} B long")
            header = json.loads(stream.read(length))
    except (OSError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{file} cannot be read as safetensors: {error}") from error
    if not isinstance(header, dict):
        raise BadInput(f"{file} cannot be read as safetensors: its header is no JSON object")
    header.pop("__metadata__", None)
    tensors = {name: _stored(file, name, entry) for name, entry in header.items()}
    promised = sum(stored.bytes for stored in tensors.values())
    if promised > room - length:
        raise BadInput(
            f"{file} is cut short: its header promises {promised:,} B of tensors; {room - length:,} B are there"
        )
    return tensors


def _stored(file: Path, name: str, entry: Any) -> Stored:
    try:
        begin, end = entry["data_offsets"]
        stored = Stored(str(entry["dtype"]), tuple(int(size) for size in entry["shape"]), int(end) - int(begin))
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{file}: the header's entry for {name!r} makes no sense: {entry!r}") from error
    if stored.bytes < 0 or min(stored.shape, default=0) < 0:
        raise BadInput(f"{file}: the header's entry for {name!r} makes no sense: {entry!r}")
    return stored
