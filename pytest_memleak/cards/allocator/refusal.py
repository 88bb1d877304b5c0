"""What the allocator says when the card is full, worded as torch words it."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_memleak.errors import MemleakError

# Which variable the advice names, and where it links to, changed with these releases.
_ADVICE = (
    ((2, 11), "PYTORCH_CUDA_ALLOC_CONF", "docs.pytorch.org", "optimizing-memory-usage-with-pytorch-cuda-alloc-conf"),
    ((2, 9), "PYTORCH_ALLOC_CONF", "pytorch.org", "environment-variables"),
    ((0, 0), "PYTORCH_CUDA_ALLOC_CONF", "pytorch.org", "environment-variables"),
)


@dataclass(frozen=True)
class Refusal:
    """The figures at the moment of a refusal, all in bytes."""

    asked: int
    """The segment that was asked for, not the tensor: 20 MiB for one of 2 MiB."""
    total: int
    free: int
    """What the card has left for anybody; more than the cap allows, where a cap refused."""
    cap: int | None
    allocated: int
    reserved: int
    device: int = 0
    processes: str = ""
    """What torch is told of who uses the card; empty where it cannot ask, as in many containers."""

    def message(self, torch_version: tuple[int, int] = (2, 13)) -> str:
        """The text of torch's OutOfMemoryError, for torch 2.6 to 2.13."""
        variable, host, anchor = next(advice[1:] for advice in _ADVICE if torch_version >= advice[0])
        allowed = "" if self.cap is None else f"{size_in_words(self.cap)} allowed; "
        return (
            f"CUDA out of memory. Tried to allocate {size_in_words(self.asked)}. GPU {self.device} has a total "
            f"capacity of {size_in_words(self.total)} of which {size_in_words(self.free)} is free. "
            f"{self.processes}{allowed}"
            f"Of the allocated memory {size_in_words(self.allocated)} is allocated by PyTorch, and "
            f"{size_in_words(self.reserved - self.allocated)} is reserved by PyTorch but unallocated. If reserved but "
            f"unallocated memory is large try setting {variable}=expandable_segments:True to avoid fragmentation.  "
            f"See documentation for Memory Management  (https://{host}/docs/stable/notes/cuda.html#{anchor})"
        )


class CardFull(MemleakError):
    """An allocation was refused; whoever stands in for torch turns it into torch's own error."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message())
        self.refusal = refusal


def process_in_words(used: int) -> str:
    """The sentence about this process where torch can ask the driver, the context's memory included."""
    return f"Including non-PyTorch memory, this process has {size_in_words(used)} memory in use. "


def size_in_words(size: int) -> str:
    """As torch prints sizes: a unit is used up to and including 1024 of it."""
    if size <= 1024:
        return f"{size} bytes"
    for unit, power in (("KiB", 1), ("MiB", 2)):
        if size <= 1024 ** (power + 1):
            return f"{size / 1024**power:.2f} {unit}"
    return f"{size / 1024**3:.2f} GiB"
