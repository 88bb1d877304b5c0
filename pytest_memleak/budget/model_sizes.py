"""The sizes a limit can name, of one model. Numbers and words only: neither a model nor a tensor is kept."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_memleak.budget.checkpoint import Stored, read_checkpoint, read_json
from pytest_memleak.budget.names import NAMES
from pytest_memleak.budget.packed import BLOCK, TABLE, eight_bit_bytes, four_bit_bytes
from pytest_memleak.budget.seen import sizes_seen
from pytest_memleak.budget.term import Term
from pytest_memleak.errors import BadInput, Inconclusive

if TYPE_CHECKING:
    from torch import nn

    from pytest_memleak.budget.weights import Weight

_NOT_LOADED = "it was not loaded, only described"
_PER_PARAMETER = {"fp32_size": 4, "fp16_size": 2, "bf16_size": 2}
_BATCH_NORM_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_OUTPUT_EMBEDDINGS = ("lm_head.weight", "embed_out.weight")


@dataclass(frozen=True)
class ModelSizes:
    """What the names of a limit mean for one model."""

    title: str
    """``LlamaForCausalLM (loaded at tests/test_load.py:12)``."""
    terms: Mapping[str, Term]
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Why a name has no meaning here."""

    def term(self, name: str) -> Term:
        if name in self.terms:
            return self.terms[name]
        if name not in NAMES:
            raise BadInput(f"unknown name {name!r}; known are {', '.join(NAMES)}")
        raise Inconclusive(f"{name} of {self.title} is not known: {self.unknown.get(name, 'it was never seen')}")

    def with_final(self, size: int, when: str) -> ModelSizes:
        """The same, knowing what the model held `when` it was looked at."""
        term = Term("final_size", size, f"weights, buffers and quantization state of {self.title} {when}")
        unknown = {name: reason for name, reason in self.unknown.items() if name != "final_size"}
        return replace(self, terms={**self.terms, "final_size": term}, unknown=unknown)

    def without(self, name: str, reason: str) -> ModelSizes:
        return replace(self, unknown={**self.unknown, name: reason})

    def with_largest(self, largest: Term) -> ModelSizes:
        return replace(self, terms={**self.terms, "largest_param": largest})


def sizes_of(source: object, *, title: str = "") -> ModelSizes:
    """The sizes of a model, a transformers config, a checkpoint's path, or a hub id that the local cache has."""
    if isinstance(source, str | os.PathLike):
        return _of_path(source, title)
    if hasattr(source, "named_modules"):
        module: Any = source
        # An observed load knows the checkpoint's dtype and every quantizer, and what the model held at its return.
        return sizes_seen(module) or of_module(module, title=title)
    if hasattr(source, "to_diff_dict") and hasattr(source, "model_type"):
        return _of_config(source, title)
    raise BadInput(
        f"{source!r:.200} is no model: give a torch.nn.Module, a transformers config, the path of a checkpoint, "
        "or the id of one in the local cache of the hub"
    )


def of_module(model: nn.Module, *, title: str = "", when: str = "when it was looked at") -> ModelSizes:
    """A model as it stands: what it was before quantization, and what it holds."""
    from pytest_memleak.budget.weights import held_bytes, weights_of

    title = title or type(model).__name__
    try:
        sizes = of_weights(weights_of(model), title)
    except Inconclusive as error:
        sizes = ModelSizes(title, {}, dict.fromkeys(NAMES, str(error)))
    return sizes.with_final(held_bytes(model), when)


def of_weights(weights: Sequence[Weight], title: str, stored: Mapping[str, Stored] | None = None) -> ModelSizes:
    """A model by the shapes it has before quantization; `stored` is the checkpoint it comes from."""
    if not weights:
        return ModelSizes(title, {}, dict.fromkeys(NAMES, "it has no floating-point parameters"))
    count = sum(weight.numel for weight in weights)
    linear = [weight for weight in weights if weight.rows]
    inside = sum(weight.numel for weight in linear)
    pinned = sum(weight.numel for weight in weights if weight.fp32)
    approximate = f"; {pinned:,} of them stay in fp32 and are counted at 2 B all the same" if pinned else ""
    kept = f"output embeddings are not quantized{approximate}"
    rest = f"the other {count - inside:,} parameters × 2 B ({kept}), of {title}"
    four = sum(four_bit_bytes(w.numel) for w in linear)
    eight = sum(eight_bit_bytes(w.numel, w.rows) for w in linear)
    terms = _per_parameter(count, title)
    terms["nf4_size"] = Term(
        "nf4_size",
        four + 2 * (count - inside),
        f"{len(linear)} Linear weights with {inside:,} parameters at 4 bits, 4 B for each {BLOCK} of them and "
        f"{TABLE} B for each weight; {rest}",
    )
    terms["int8_size"] = Term(
        "int8_size",
        eight + 2 * (count - inside),
        f"{len(linear)} Linear weights with {inside:,} parameters × 1 B and 4 B for each row; {rest}",
    )
    terms["largest_param"] = _largest(weights, title, stored or {})
    return ModelSizes(title, terms, {"final_size": _NOT_LOADED})


def _per_parameter(count: int, title: str) -> dict[str, Term]:
    return {
        name: Term(name, count * width, f"{count:,} parameters × {width} B of {title}")
        for name, width in _PER_PARAMETER.items()
    }


def _largest(weights: Sequence[Weight], title: str, stored: Mapping[str, Stored]) -> Term:
    """At the checkpoint's dtype: by name, or by the dtype that fills most of the checkpoint where names differ."""
    by_dtype: dict[tuple[str, int], int] = {}
    for tensor in stored.values():
        if tensor.is_float and tensor.numel:
            kind = (tensor.dtype, tensor.bytes // tensor.numel)
            by_dtype[kind] = by_dtype.get(kind, 0) + tensor.bytes
    common = max(by_dtype, key=lambda kind: by_dtype[kind]) if by_dtype else None

    def size(weight: Weight) -> tuple[int, str]:
        twin = stored.get(weight.name)
        if twin is not None:
            return twin.bytes, f"{twin.dtype} in the checkpoint"
        if common is not None:
            return weight.numel * common[1], f"{common[0]} in the checkpoint"
        return weight.numel * weight.itemsize, weight.dtype

    largest = max(weights, key=lambda weight: size(weight)[0])
    count, dtype = size(largest)
    return Term("largest_param", count, f"{largest.name} of {title}, {largest.numel:,} parameters, {dtype}")


def _of_config(config: Any, title: str, stored: Mapping[str, Stored] | None = None) -> ModelSizes:
    from pytest_memleak.budget.weights import weights_of

    model = on_meta(config)
    return of_weights(weights_of(model), title or f"{type(model).__name__} (from its config)", stored)


def on_meta(config: Any) -> nn.Module:
    """The model a config describes, with shapes and no memory."""
    import torch

    names = getattr(config, "architectures", None) or []
    if not names:
        raise BadInput(
            f"{type(config).__name__} names no architecture: with a head or without cannot be told; "
            "set config.architectures = ['…ForCausalLM'] or give the model itself"
        )
    transformers: Any = importlib.import_module("transformers")
    architecture = getattr(transformers, names[0], None)
    if architecture is None:
        raise BadInput(f"transformers {transformers.__version__} has no {names[0]}, which the config names")
    # On meta the default dtype alone decides what a parameter is declared as; the config's own wish is no tensor yet.
    wanted = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    before = torch.get_default_dtype()
    try:
        if isinstance(wanted, torch.dtype) and wanted.is_floating_point:
            torch.set_default_dtype(wanted)
        with torch.device("meta"):
            model: nn.Module = architecture(config)
    finally:
        torch.set_default_dtype(before)
    return model


def _of_path(source: str | os.PathLike[str], title: str) -> ModelSizes:
    path = Path(source).expanduser()
    if not path.exists():
        path = _in_cache(str(source))
    if path.suffix == ".json":
        path = path.parent
    if path.is_file() and path.suffix != ".safetensors":
        raise BadInput(f"{path} is no checkpoint: give a folder, a .safetensors file or a config.json")
    stored = read_checkpoint(path)
    title = title or f"the checkpoint {source}"
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    known = _known_architecture(config) if path.is_dir() else f"{path.name} is a file without a config"
    if not known:
        auto: Any = importlib.import_module("transformers").AutoConfig
        try:
            loaded = auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise BadInput(f"the config of {folder} cannot be read by transformers: {error}") from error
        return _of_config(loaded, title, stored)
    if not stored:
        raise BadInput(f"{folder} has a config and no weights, and the config alone says nothing: {known}")
    return _of_headers(stored, config, title, known)


def _of_headers(stored: Mapping[str, Stored], config: Mapping[str, Any], title: str, known: str) -> ModelSizes:
    """Without transformers' help: the headers list parameters and buffers alike, and not which are Linear."""
    if "quantization_config" in config:
        raise Inconclusive(f"{title} is quantized, and what it was cannot be told: {known}")
    floats = {n: t for n, t in stored.items() if t.is_float and not n.endswith(_BATCH_NORM_BUFFERS)}
    if config.get("tie_word_embeddings"):
        shapes = [t.shape for n, t in floats.items() if not n.endswith(_OUTPUT_EMBEDDINGS)]
        floats = {n: t for n, t in floats.items() if not (n.endswith(_OUTPUT_EMBEDDINGS) and t.shape in shapes)}
    if not floats:
        raise BadInput(f"{title} holds no floating-point tensors")
    terms = _per_parameter(sum(tensor.numel for tensor in floats.values()), title)
    name, largest = max(floats.items(), key=lambda item: item[1].bytes)
    terms["largest_param"] = Term(
        "largest_param",
        largest.bytes,
        f"{name} of {title}, {largest.numel:,} parameters, {largest.dtype} in the checkpoint",
    )
    reason = f"a checkpoint's headers do not say which weights are Linear, and {known}"
    return ModelSizes(title, terms, {"nf4_size": reason, "int8_size": reason, "final_size": _NOT_LOADED})


def _known_architecture(config: Mapping[str, Any]) -> str:
    """Empty if transformers can build what the config describes, else why not."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        return "its config.json names no architecture"
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed"
    if not hasattr(importlib.import_module("transformers"), str(names[0])):
        return f"transformers has no {names[0]}"
    return ""


def _in_cache(name: str) -> Path:
    """The snapshot of a hub id on this machine; the network is never asked."""
    if name.count("/") <= 1 and not name.startswith((".", "/", "~")) and importlib.util.find_spec("huggingface_hub"):
        hub: Any = importlib.import_module("huggingface_hub")
        try:
            found = hub.try_to_load_from_cache(name, "config.json")
        except ValueError:  # not the form of an id: it was meant as a path
            found = None
        if isinstance(found, str):
            return Path(found).parent
    raise BadInput(
        f"{name!r} is neither a path that exists nor a model in the local cache of the hub "
        "(nothing is downloaded: fetch it beforehand, or give a path or a config)"
    )
