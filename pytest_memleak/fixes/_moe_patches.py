"""What the fix `moe_experts` puts around transformers' loads: those that quantize in 4 bits, and no others.

The loader converts one tensor of the model after the other, and sets each. For an expert tensor the conversion is done
here, an expert at a time, and nothing is left to be set: the parameter stays on meta until upstream has initialized
what the checkpoint lacks, so that nothing asks for its values, and what was packed takes its place then.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from pytest_memleak.fixes import _moe_reload, _moe_sources
from pytest_memleak.fixes._loader import loader_and_its_caller
from pytest_memleak.fixes._moe_load import Load, Loads
from pytest_memleak.fixes._moe_packing import packed, table
from pytest_memleak.fixes._moe_settings import TYPES, require_bitsandbytes
from pytest_memleak.fixes._moe_sizing import sizing
from pytest_memleak.upstream.experts import expert_parameters
from pytest_memleak.upstream.patches import Patch


def patches() -> Iterator[Patch]:
    require_bitsandbytes()
    for quant_type in TYPES:
        table(quant_type)
    loader, modeling = loader_and_its_caller("moe_experts")
    loads, pending = Loads(), WeakKeyDictionary[Any, Load]()
    yield _following(modeling, loads, pending)
    yield Patch(loader, "spawn_materialize", functools.partial(_reading, loads), parameters=["thread_pool", "tensor"])
    for name in ("WeightConverter", "WeightRenaming"):
        converts = functools.partial(_converting, loads)
        yield Patch(getattr(loader, name), "convert", converts, parameters=["layer_name", "config"])
    initializes = functools.partial(_putting, pending)
    yield Patch(modeling.PreTrainedModel, "_initialize_missing_keys", initializes, parameters=["self", "is_quantized"])
    yield from sizing()


def _following(modeling: Any, loads: Loads, pending: WeakKeyDictionary[Any, Load]) -> Patch:
    """While entered, `loads` knows about each thread's load, and `pending` what it packed."""

    def follow(found: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(found)

        @functools.wraps(found)
        def convert_and_load_state_dict_in_model(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            model, outer = given["model"], loads.innermost
            loads.innermost = load = Load(model, given["state_dict"], given["load_config"])
            try:
                result = found(*args, **kwargs)
            finally:
                loads.innermost = outer
            info = result[0]  # until 5.2 the missing names themselves
            getattr(info, "missing_keys", info).difference_update(load.packed)
            load.stored.conclude(load.packed, getattr(info, "unexpected_keys", result[1]))
            if load.packed:
                _moe_reload.keep_together(model, [one.name for one in expert_parameters(model)])
            if load.concerned:
                pending[model] = load
            return result

        return convert_and_load_state_dict_in_model

    # Under the name by which models call it.
    name = "convert_and_load_state_dict_in_model"
    return Patch(modeling, name, follow, parameters=["model", "state_dict", "load_config"])


def _reading(loads: Loads, found: Callable[..., Any]) -> Callable[..., Any]:
    """A load that quantizes experts gets readers, which can read one of them, too."""

    takes = list(inspect.signature(found).parameters)

    @functools.wraps(found)
    def spawn_materialize(thread_pool: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        load = loads.innermost
        if not load.experts:
            return found(thread_pool, tensor, *args, **kwargs)
        # Called for each tensor of the checkpoint: Signature.bind would take longer than the reading of a small one.
        given = {**dict(zip(takes[2:], args, strict=False)), **kwargs}

        def spawn(one: Any, **where: Any) -> Any:
            return found(None, one, **(given | where))

        # Without the pool of threads that releases before 5.4 have for such loads, too: see four_bit_load.
        return _moe_sources.Reader(tensor, given.get("device"), spawn)

    return spawn_materialize


def _converting(loads: Loads, found: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(found)

    @functools.wraps(found)
    def convert(*args: Any, **kwargs: Any) -> Any:
        load = loads.innermost
        if not load.experts:
            return found(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        mapping, name = given["self"], given["layer_name"]
        # Until 5.2 a conversion gave back what went wrong as well.
        errors = (given["conversion_errors"],) if "conversion_errors" in signature.parameters else ()
        if name in load.experts and _packs(load, mapping, name, given["config"]):
            return ({}, *errors) if errors else {}
        result = found(*args, **kwargs)
        made = result[0] if errors else result
        # Of operations that nobody knows here: the whole tensor was put together.
        for name in [name for name in made if name in load.experts and not load.stored.names]:
            whole = made.pop(name)
            whole = whole[0] if isinstance(whole, list) else whole
            one = load.experts[name].parameter
            if whole.shape != one.shape:
                made[name] = whole  # the loader tells of it
                continue
            load.outcome.whole.append(name)
            load.take(name, packed(iter(whole.unbind()), whole.shape, load.settings))
            del whole
        return result

    return convert


def _packs(load: Load, mapping: Any, name: str, config: Any) -> bool:
    one = load.experts[name]
    if load.stored.names:
        done = load.stored.read(mapping, name)
    else:
        shape, blocksize = one.parameter.shape, load.settings.blocksize
        pieces = _moe_sources.pieces(mapping, name, shape, config, blocksize, load.room)
        done = packed(pieces, shape, load.settings) if pieces is not None else None
    if done is not None:
        load.take(name, done)
    return done is not None


def _putting(pending: WeakKeyDictionary[Any, Load], found: Callable[..., Any]) -> Callable[..., Any]:
    """The last that upstream does with what was loaded is to initialize what was not."""

    @functools.wraps(found)
    def _initialize_missing_keys(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = found(self, *args, **kwargs)
        load = pending.pop(self, None)
        if load is not None:
            load.put(self)
            load.outcome.tell()
        return result

    return _initialize_missing_keys
