"""The loader that transformers has had since 5.0, for the fixes that are about it."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from pytest_memleak.upstream.patches import Unrecognised


def loader_of_5(fix: str) -> Any:
    """Its module. Refused where it is not there."""
    try:
        return import_module("transformers.core_model_loading")
    except ModuleNotFoundError as error:
        raise Unrecognised(f"{fix} is about the loader of transformers 5, which is not there: {error}") from None


def loader_and_its_caller(fix: str) -> tuple[Any, Any]:
    """And the module that calls it. Refused where what a load is asked for does not stand in its config."""
    loader = loader_of_5(fix)
    modeling = import_module("transformers.modeling_utils")
    known = inspect.signature(modeling.LoadStateDictConfig).parameters
    if missing := {"hf_quantizer", "device_map"}.difference(known):
        raise Unrecognised(f"LoadStateDictConfig of this release has no {', '.join(sorted(missing))}")
    return loader, modeling
