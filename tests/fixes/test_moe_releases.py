"""Releases of transformers and bitsandbytes that the fix `moe_experts` is not for: told, and left as they are."""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes.nn.parametrize")
core_model_loading = pytest.importorskip("transformers.core_model_loading")

from torch import nn
from transformers import modeling_utils

from pytest_memleak.errors import Unavailable
from pytest_memleak.fixes.moe_experts import FIX, quantize_experts
from pytest_memleak.upstream.patches import Unrecognised


def test_an_old_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    with_old("bitsandbytes", "0.47.0", monkeypatch)
    with pytest.raises(Unavailable, match=r"needs bitsandbytes 0.48 or later: 0.47.0"), FIX.fixed():
        pass
    with pytest.raises(Unavailable, match=r"needs bitsandbytes 0.48 or later: 0.47.0"):
        quantize_experts(nn.Module())


def test_no_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    with_old("bitsandbytes", None, monkeypatch)
    with pytest.raises(Unavailable, match="which is not installed here"), FIX.fixed():
        pass


def test_transformers_4_has_no_such_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str, package: str | None = None) -> Any:
        if name == "transformers.core_model_loading":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return importlib.import_module(name, package)

    monkeypatch.setattr("pytest_memleak.fixes._loader.import_module", without)
    with pytest.raises(Unrecognised, match="about the loader of transformers 5"), FIX.bug():
        pass


@pytest.mark.parametrize(
    ("owner", "name", "changed"),
    [
        (modeling_utils, "convert_and_load_state_dict_in_model", lambda model, state_dict, config: None),
        (modeling_utils, "LoadStateDictConfig", lambda quantizer: None),
        (core_model_loading, "spawn_materialize", lambda tensor, device: None),
        (core_model_loading.WeightConverter, "convert", lambda self, name: None),
        (modeling_utils.PreTrainedModel, "_initialize_missing_keys", lambda self: None),
    ],
)
def test_a_loader_that_has_changed_is_left_alone(owner: Any, name: str, changed: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, changed)
        with pytest.raises(Unrecognised, match=name), FIX.fixed():
            pass
        assert getattr(owner, name) is changed


def with_old(package: str, version: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = metadata.version

    def told(name: str) -> str:
        if name != package:
            return found(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", told)
