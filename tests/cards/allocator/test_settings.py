from __future__ import annotations

import re

import pytest

from pytest_memleak.cards.allocator.rules import INTERVALS, MIB, UNLIMITED
from pytest_memleak.cards.allocator.settings import Settings, from_environment, parse
from pytest_memleak.errors import BadInput


def test_nothing_set_is_the_default() -> None:
    assert parse("") == Settings()
    assert Settings().max_split == UNLIMITED


def test_everything_that_counts() -> None:
    text = (
        "backend:native, max_split_size_mb:128,max_non_split_rounding_mb:40,garbage_collection_threshold:0.8,"
        "expandable_segments:True,large_segment_size_mb:64,per_process_memory_fraction:0.5,"
        "roundup_power2_divisions:4"
    )
    assert parse(text) == Settings(
        max_split=128 * MIB,
        max_extra=40 * MIB,
        large_segment=64 * MIB,
        expandable=True,
        divisions=(4,) * INTERVALS,
        collect_above=0.8,
        fraction=0.5,
    )


def test_divisions_by_size() -> None:
    divisions = parse("roundup_power2_divisions:[4:2,16:8,>:1],expandable_segments:False").divisions
    # Up to 4 MiB two; 8 MiB nothing was said of; 16 MiB and more: the last entry begins where the one before stands.
    assert divisions == (2, 2, 2, 0, *([1] * (INTERVALS - 4)))


def test_known_options_without_effect_are_taken() -> None:
    assert parse("pinned_use_cuda_host_register:True,pinned_num_register_threads:8,throw_on_cudamalloc_oom:True") == (
        Settings()
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("max_split_size:128", "'max_split_size' is no option"),
        ("max_split_size_mb:10", "20 or more"),
        ("max_split_size_mb:many", "max_split_size_mb:many"),
        ("max_split_size_mb", "cannot be read"),
        ("expandable_segments:true", "True or False"),
        ("garbage_collection_threshold:1.0", "between 0 and 1"),
        ("garbage_collection_threshold:x", "garbage_collection_threshold:x"),
        ("roundup_power2_divisions:3", "power of two"),
        ("roundup_power2_divisions:[64]", "'64' is not size:divisions"),
        ("roundup_power2_divisions:[64:2", "cannot be read"),
        ("backend:cudaMallocAsync", "use backend:native"),
    ],
)
def test_what_cannot_be_read_is_quoted(text: str, complaint: str) -> None:
    with pytest.raises(BadInput, match=re.escape(complaint)):
        parse(text)


def test_of_two_variables_the_one_that_torch_asks_first() -> None:
    both = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:32", "PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}
    assert from_environment(both).max_split == 32 * MIB
    del both["PYTORCH_CUDA_ALLOC_CONF"]
    assert from_environment(both).max_split == 64 * MIB
    assert from_environment({}) == Settings()


def test_an_error_says_which_variable() -> None:
    with pytest.raises(BadInput, match=r"^PYTORCH_ALLOC_CONF: 'x' is no option"):
        from_environment({"PYTORCH_ALLOC_CONF": "x:1"})
