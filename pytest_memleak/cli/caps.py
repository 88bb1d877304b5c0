"""The doctor's trial of caps: on each accelerator, and on the CPU standing in for one.

A cap is set and something larger is asked for: versions and drivers say little about what that does.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.cli.devices import accelerator_kind
from pytest_memleak.cli.finding import Finding, first_line
from pytest_memleak.errors import Unavailable

_CAPS = "caps"
_CPU = "CPU tensors"
_CAP = 32 * 1024**2
_REQUEST = 2 * _CAP
_TOO_MUCH = f"{format_size(_REQUEST)} past a cap of {format_size(_CAP)}"


def caps(torch: ModuleType) -> list[Finding]:
    kind = accelerator_kind(torch)
    count = torch.accelerator.device_count() if kind else 0
    return [*(_on_device(torch, kind, index) for index in range(count)), *_on_cpu(torch)]


def _on_device(torch: ModuleType, kind: str | None, index: int) -> Finding:
    where = f"{kind}:{index}"
    if kind != "cuda":
        return Finding(_CAPS, "no", where, f"caps hold on CUDA and ROCm only, not on {kind}")
    try:
        refused = _device_refuses(torch, index)
    except Exception as error:  # noqa: BLE001 - drivers fail in their own ways, and the reason is the answer
        return Finding(_CAPS, "no", where, f"could not be tried: {first_line(error)}")
    if not refused:
        return Finding(_CAPS, "no", where, f"tried: the caching allocator gave {_TOO_MUCH}")
    told = "tried: enforced by the caching allocator, told through mem_get_info and the device's properties"
    return Finding(_CAPS, "yes", where, told, caps=True)


def _device_refuses(torch: ModuleType, index: int) -> bool:
    cuda: Any = torch.cuda
    free, total = cuda.mem_get_info(index)
    if free < 2 * _REQUEST:
        # An allocation refused here would prove nothing about the cap.
        raise Unavailable(f"only {format_size(free)} are free, too little for a trial; end what occupies the card")
    # Where torch cannot tell the fraction (before 2.8 or so), this new process has not set any.
    before = cuda.get_per_process_memory_fraction(index) if hasattr(cuda, "get_per_process_memory_fraction") else 1.0
    cuda.set_per_process_memory_fraction(_CAP / total, index)
    try:
        return _refused(torch, f"cuda:{index}")
    finally:
        cuda.set_per_process_memory_fraction(before, index)
        cuda.empty_cache()


def _on_cpu(torch: ModuleType) -> list[Finding]:
    """The exact engine is built on first use, so loading it tells whether it can be had."""
    try:
        from pytest_memleak.events.cpu_allocator import CpuAllocator

        engine = CpuAllocator.load()
    except Unavailable as reason:
        return [
            Finding(_CAPS, "partly", "cpu", "judged at the end of a test, not enforced: the exact engine is missing"),
            Finding(
                _CPU, "partly", "engine", f"dispatch: what operators return, without their scratch memory: {reason}"
            ),
        ]
    exact = Finding(_CPU, "yes", "engine", "exact: every allocation of torch's CPU allocator, on all threads")
    engine.set_cap(engine.current() + _CAP)
    try:
        refused = _refused(torch, "cpu")
    finally:
        engine.set_cap(None)
    if not refused:
        return [Finding(_CAPS, "no", "cpu", f"tried: the CPU allocator gave {_TOO_MUCH}"), exact]
    return [Finding(_CAPS, "yes", "cpu", "tried: enforced on CPU tensors by the exact engine", caps=True), exact]


def _refused(torch: ModuleType, device: str) -> bool:
    try:
        torch.empty(_REQUEST, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError:
        return True
    return False
