"""Checkpoints made from a config, to be loaded by transformers: small ones with random weights, and large ones of zeros
that take no disk.

A safetensors file is a header and the tensors' bytes: where those are a hole in the file, a checkpoint of 70 GB takes a
few KB, and reading it gives zeros.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pytest_memleak.budget.model_sizes import on_meta
from pytest_memleak.budget.sizes import UNITS, format_size
from pytest_memleak.errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch import nn

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_STORED = DTYPES | {"int64": "I64", "int32": "I32", "int8": "I8", "uint8": "U8", "bool": "BOOL"}

MOST_IN_A_SHARD = 4_900_000_000
"""A shard is mapped whole when it is loaded, and systems refuse private maps that are larger than their memory."""
MOST_RANDOM = 2 * UNITS["GiB"]
_CHUNK = 1 << 22
_SMALL = 1 << 20
"""Norms and the like, whose values are copied; of others a loader reads the first byte."""
_HEADS = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModel")


def make_checkpoint(
    config: Any, folder: Path, *, dtype: str = "bfloat16", sparse: bool = False, tokenizer: bool = True
) -> Path:
    """Writes a checkpoint for `config` into `folder`, the same in every run; `config` itself is left as it is.

    `sparse`: the weights are zeros and take no disk, at any size. Otherwise they are random.
    """
    import torch

    require_config(config)
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise BadInput(f"dtype={dtype!r}: a checkpoint can be made in {', '.join(DTYPES)}")
    config = copy.deepcopy(config)
    if getattr(config, "quantization_config", None) is not None:
        raise BadInput(
            f"this {type(config).__name__} describes a checkpoint that is quantized already, which cannot be made "
            "here; take quantization_config out of it, and quantize when the checkpoint is loaded"
        )
    # Releases before 4.56 know it by its old name alone.
    setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", getattr(torch, dtype))
    model = _described(config)
    config.architectures = [type(model).__name__]
    tensors = _as_saved(model)
    total = sum(_bytes(tensor) for tensor in tensors.values())
    if not sparse and total > MOST_RANDOM:
        raise BadInput(
            f"a checkpoint of {format_size(total)} with random weights would fill the disk; sparse=True makes one of "
            f"zeros that takes none (random ones go up to {format_size(MOST_RANDOM)})"
        )
    folder.mkdir(parents=True, exist_ok=True)
    spread = float(getattr(config.get_text_config(), "initializer_range", None) or 0.02)
    shards = list(_shards(tensors))
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(folder / name, shard, None if sparse else spread)
        places |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    config.save_pretrained(folder)
    if tokenizer:
        _write_tokenizer(config.get_text_config(), folder)
    return folder


def require_config(config: object) -> None:
    """Says what to give instead of what is none: a name, a dictionary, a model."""
    from transformers import PretrainedConfig

    if isinstance(config, PretrainedConfig):
        return
    raise BadInput(
        f"a checkpoint is made from a transformers config, such as LlamaConfig(hidden_size=64, ...), and "
        f"{type(config).__name__} is none: "
        + ("AutoConfig.from_pretrained reads one from a folder" if isinstance(config, str | Path) else _instead(config))
    )


def _instead(given: object) -> str:
    if isinstance(given, dict):
        return "its class takes these entries as arguments"
    return "give model.config" if hasattr(given, "config") else "give an instance of one"


def _described(config: Any) -> nn.Module:
    """The model with shapes and no memory; a config without an architecture means the model with a head to generate."""
    if getattr(config, "architectures", None):
        return on_meta(config)
    import torch
    import transformers

    # What is imported while meta is the default device makes its own tensors there; older releases of torch fail so.
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
    refused = ""
    for name in _HEADS:
        try:
            with torch.device("meta"):
                model: nn.Module = getattr(transformers, name).from_config(config)
            return model
        except ValueError as error:
            refused = str(error).partition("\n")[0]
    raise BadInput(f"transformers {transformers.__version__} has no model for {type(config).__name__}: {refused}")


def _as_saved(model: Any) -> dict[str, torch.Tensor]:
    """Names and shapes as `save_pretrained` writes them: tied weights once, and what is fused in memory apart."""
    once = dict(model.named_parameters()) | dict(model.named_buffers())
    found = {name: once[name] for name in model.state_dict() if name in once}
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # transformers 4 loads what it saves as it is
        return found
    reverted: dict[str, torch.Tensor] = revert_weight_conversion(model, found)
    return reverted


def _shards(tensors: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    held = 0
    for name, tensor in tensors.items():
        size = _bytes(tensor)
        if shard and held + size > MOST_IN_A_SHARD:
            yield shard
            shard, held = {}, 0
        shard[name] = tensor
        held += size
    yield shard


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.itemsize


def _write(path: Path, tensors: Mapping[str, torch.Tensor], spread: float | None) -> None:
    """One file; without `spread` its tensors are a hole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + _bytes(tensor)
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind not in _STORED:
            raise BadInput(f"{name} has dtype {kind}, in which a checkpoint cannot be made here")
        header[name] = {"dtype": _STORED[kind], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("w+b") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if spread is not None:
            for name, tensor in tensors.items():
                _write_values(file, name, tensor, spread)
        file.truncate(8 + len(text) + end)
        file.flush()
        if spread is None:
            _read_once(file, 8 + len(text), tensors)


def _read_once(file: BinaryIO, start: int, tensors: Mapping[str, torch.Tensor]) -> None:
    """What a loader looks at: the beginning of each tensor. The system then has these pages, and reads none ahead.

    Reading ahead fills megabytes of memory with zeros for each tensor, which takes longer than all the rest of a load.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with contextlib.suppress(OSError):  # advice that a file system does not take
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    for tensor in tensors.values():
        size = _bytes(tensor)
        os.pread(file.fileno(), size if size <= _SMALL else 1, start)
        start += size


def _write_values(file: BinaryIO, name: str, tensor: torch.Tensor, spread: float) -> None:
    """Numbers that a model of its own accord could start with: weights around 0, norms of 1, biases of 0.

    numpy makes them: tensors would count as the test's own.
    """
    import numpy

    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in DTYPES or name.endswith((".bias", ".running_mean")):
        file.seek(_bytes(tensor), 1)
        return
    # Each tensor has its own numbers, whatever stands before it.
    random = numpy.random.default_rng(zlib.crc32(name.encode()))
    left = math.prod(tensor.shape)
    while left:
        count = min(left, _CHUNK)
        left -= count
        if tensor.dim() < 2:
            values = numpy.ones(count, numpy.float32)
        else:
            values = random.standard_normal(count, dtype=numpy.float32) * numpy.float32(spread)
        if kind == "bfloat16":
            file.write(((values.view(numpy.uint32) + 0x8000) >> 16).astype(numpy.uint16).tobytes())
        else:
            file.write(values.astype(kind).tobytes())


def _write_tokenizer(config: Any, folder: Path) -> None:
    """One token for each character, with the ids for beginning, end and padding that the config names."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    size = int(getattr(config, "vocab_size", 0) or 0)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    words: dict[int, str] = {}
    for name, word in special.items():
        index = getattr(config, f"{name}_id", None)
        index = index[0] if isinstance(index, list) and index else index
        if isinstance(index, int) and 0 <= index < size:
            words.setdefault(index, word)
    free = (index for index in range(size) if index not in words)
    for word in ["<unk>", *map(chr, range(ord(" "), ord("~") + 1)), "\n"]:
        if (index := next(free, None)) is None:
            break
        words[index] = word
    if "<unk>" not in words.values():
        return  # a vocabulary without room for a word, or none at all: this is no model of text
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in sorted(words.items())}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    named = {name: word for name, word in special.items() if word in words.values()}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **named).save_pretrained(folder)
