"""The doctor's look at accelerators: which there are, what of them can be measured, and why there is none."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.cli.finding import Finding, first_line

_GROUP = "accelerators"
_SIGNS_OF_A_CARD = {
    "an NVIDIA driver": ("/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/dxg"),
    "an AMD driver": ("/dev/kfd",),
}


def accelerators(torch: ModuleType) -> list[Finding]:
    kind = accelerator_kind(torch)
    if kind is None:
        return [_none(torch)]
    return [_device(torch, kind, index) for index in range(torch.accelerator.device_count())]


def accelerator_kind(torch: ModuleType) -> str | None:
    """``cuda`` (ROCm as well), ``xpu``, ``mps`` …; None without a device that torch can use."""
    return str(torch.accelerator.current_accelerator().type) if torch.accelerator.is_available() else None


def _device(torch: ModuleType, kind: str, index: int) -> Finding:
    where = f"{kind}:{index}"
    try:
        name, memory = _described(torch, kind, index)
        counters = _counters(torch, kind, index)
    except Exception as error:  # noqa: BLE001 - drivers fail in their own ways (busy, lost), and the reason is the answer
        return Finding(_GROUP, "no", where, f"is there but does not answer: {first_line(error)}")
    if "allocated_bytes.all.peak" not in counters:
        told = f"torch {torch.__version__} counts no peaks on {kind}, so no max_peak there"
        return Finding(_GROUP, "no", where, f"{name}, {memory}: {told}")
    if kind != "cuda" or torch.version.hip:
        label = "ROCm" if kind == "cuda" else kind
        told = "peaks through torch's counters, but this package was not tried on such a card"
        return Finding(_GROUP, "partly", where, f"{name} ({label}), {memory}: {told}")
    return Finding(_GROUP, "yes", where, f"{name}, {memory}: requested, allocated, reserved and driver are measured")


def _described(torch: ModuleType, kind: str, index: int) -> tuple[str, str]:
    module = torch.get_device_module(kind)
    name = str(module.get_device_name(index)) if hasattr(module, "get_device_name") else kind
    if not hasattr(module, "mem_get_info"):
        return name, "size not told"
    free, total = module.mem_get_info(index)
    return name, f"{format_size(total)}, {format_size(free)} free"


def _counters(torch: ModuleType, kind: str, index: int) -> dict[str, int]:
    # The allocator has no counters before its first allocation.
    torch.empty(1, dtype=torch.uint8, device=f"{kind}:{index}")
    source = torch.cuda if kind == "cuda" else torch.accelerator
    return dict(source.memory_stats(index)) if hasattr(source, "memory_stats") else {}


def _none(torch: ModuleType) -> Finding:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return Finding(_GROUP, "no", "none", f"CUDA_VISIBLE_DEVICES={hidden!r} hides every card: unset it to use one")
    if torch.version.cuda or torch.version.hip:
        return Finding(_GROUP, "no", "none", f"{_why_not_cuda(torch)}; the CPU stands in")
    seen = next((name for name, paths in _SIGNS_OF_A_CARD.items() if any(Path(path).exists() for path in paths)), None)
    if seen:
        told = f"{seen} is here, but torch {torch.__version__} is not built for it: install a build that is"
        return Finding(_GROUP, "no", "none", told)
    return Finding(_GROUP, "-", "none", "no card and no driver found; the CPU stands in")


def _why_not_cuda(torch: ModuleType) -> str:
    try:
        torch.cuda.init()
    except Exception as error:  # noqa: BLE001 - whatever the driver says is the answer
        return f"torch finds no card: {first_line(error)}"
    return "torch finds no card"
