"""The wording of torch's own error; test_replay compares it with what a card said."""

from __future__ import annotations

import pytest

from pytest_memleak.cards.allocator.refusal import CardFull, Refusal, process_in_words, size_in_words

GIB = 2**30

REFUSAL = Refusal(
    asked=2 * GIB, total=24 * GIB, free=5 * GIB + GIB // 2, cap=16 * GIB, allocated=13 * GIB, reserved=14 * GIB
)
BEGINNING = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 24.00 GiB of which 5.50 GiB is "
    "free. 16.00 GiB allowed; Of the allocated memory 13.00 GiB is allocated by PyTorch, and 1024.00 MiB is reserved "
    "by PyTorch but unallocated. If reserved but unallocated memory is large try setting "
)


@pytest.mark.parametrize(
    ("version", "ending"),
    [
        (
            (2, 6),
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation for Memory "
            "Management  (https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)",
        ),
        (
            (2, 10),
            "PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation for Memory "
            "Management  (https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)",
        ),
        (
            (2, 13),
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation for Memory "
            "Management  (https://docs.pytorch.org/docs/stable/notes/cuda.html"
            "#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)",
        ),
    ],
)
def test_the_advice_of_each_release(version: tuple[int, int], ending: str) -> None:
    assert REFUSAL.message(version) == BEGINNING + ending


def test_without_a_cap_nothing_is_allowed() -> None:
    refusal = Refusal(asked=20, total=GIB, free=0, cap=None, allocated=0, reserved=0, device=3)
    assert "Tried to allocate 20 bytes. GPU 3 has a total capacity of 1024.00 MiB of which 0 bytes is free. Of the" in (
        refusal.message()
    )


def test_what_the_process_uses_stands_before_the_cap() -> None:
    refusal = Refusal(
        asked=1,
        total=2,
        free=1,
        cap=1,
        allocated=0,
        reserved=0,
        processes=process_in_words(3 * GIB),
    )
    assert (
        "is free. Including non-PyTorch memory, this process has 3.00 GiB memory in use. 1 bytes allowed; Of the "
        in refusal.message()
    )


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"),
        (1024, "1024 bytes"),
        (1025, "1.00 KiB"),
        (2**20, "1024.00 KiB"),
        (20 * 2**20, "20.00 MiB"),
        (GIB, "1024.00 MiB"),
        (GIB + 1, "1.00 GiB"),
        (150_109_880_320, "139.80 GiB"),
    ],
)
def test_sizes_as_torch_prints_them(size: int, words: str) -> None:
    assert size_in_words(size) == words


def test_the_exception_says_it_too() -> None:
    assert str(CardFull(REFUSAL)) == REFUSAL.message()
