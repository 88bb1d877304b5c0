"""The doctor's look at Python, pytest, torch and the packages that tests of models use."""

from __future__ import annotations

import platform
from importlib import metadata
from types import ModuleType

from pytest_memleak.cli.finding import Finding
from pytest_memleak.support import PYTEST_FLOOR, PYTHON_FLOOR, TORCH_FLOOR, at_least

SOFTWARE = "software"
_INSTALL_TORCH = (
    f'install torch {TORCH_FLOOR} or newer (pip install "pytest-memleak[torch]", or the build for your card)'
)


def basics() -> list[Finding]:
    return [
        Finding(SOFTWARE, "-", "pytest-memleak", _installed("pytest-memleak") or "not installed, run from its source"),
        _held_against("Python", platform.python_version(), PYTHON_FLOOR),
        _held_against("pytest", _installed("pytest"), PYTEST_FLOOR),
    ]


def torch_here() -> tuple[ModuleType | None, Finding]:
    """torch, if it can be used, and what there is to say about it."""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name == "torch":
            return None, Finding(SOFTWARE, "no", "torch", f"not installed: nothing can be measured; {_INSTALL_TORCH}")
        return None, _broken(error)
    except Exception as error:  # noqa: BLE001 - a damaged torch fails in many ways, and each is an answer
        return None, _broken(error)
    version = str(torch.__version__)
    if not at_least(version, TORCH_FLOOR):
        return None, Finding(SOFTWARE, "no", "torch", f"{version} is older than {TORCH_FLOOR}: {_INSTALL_TORCH}")
    return torch, Finding(SOFTWARE, "yes", "torch", f"{version}, {_build(torch)}")


def companions() -> list[Finding]:
    """Packages that are of use but not needed; read from their metadata, since importing some takes seconds."""
    known = {
        "transformers": "sizes of models its tests load",
        "accelerate": "",
        "bitsandbytes": "",
        "pytest-xdist": "tests on several workers",
        "pytest-rerunfailures": "reruns replace earlier results",
    }
    return [
        Finding(SOFTWARE, "-", name, ": ".join(filter(None, (_installed(name) or "not installed", use))))
        for name, use in known.items()
    ]


def _broken(error: Exception) -> Finding:
    return Finding(SOFTWARE, "no", "torch", f"is installed but cannot be imported: {type(error).__name__}: {error}")


def _held_against(name: str, version: str, floor: str) -> Finding:
    if at_least(version, floor):
        return Finding(SOFTWARE, "yes", name, version)
    return Finding(SOFTWARE, "no", name, f"{version or 'not installed'}: {floor} or newer is needed")


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _build(torch: ModuleType) -> str:
    for name, label in (("hip", "ROCm"), ("cuda", "CUDA"), ("xpu", "XPU")):
        if version := getattr(torch.version, name, None):
            return f"built for {label} {version}"
    return "a build without CUDA or ROCm"
