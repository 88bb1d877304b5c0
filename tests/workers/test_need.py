"""What a test reserves: its own words before the run's, and these before what is only known of it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pytest_memleak import promises
from pytest_memleak.errors import BadInput
from pytest_memleak.settings import EQUAL, WHOLE, Given, Settings
from pytest_memleak.workers.need import RECORDED, Bytes, Need, Share, known_limit, need_of

GIB = 1024**3
_RUN = Settings(cap=80 * GIB, cap_given=Given("80G", "--gpu-cap"))
_PEAKS = Settings(defaults={"max_peak": Given("70G", "--memleak-max-peak")})


BYTES: tuple[tuple[str, Settings | None, int, float], ...] = (
    ("@mark.gpu_cap('24G') @mark.max_peak('10G')", None, 0, 24),
    ("@mark.gpu_cap('24G')", _RUN, 5, 24),
    ("@mark.max_peak('10G')", None, 5, 10),
    ("@mark.max_peak('10G')", _RUN, 5, 10),
    ("@mark.max_peak('2 * 5G')", None, 0, 10),
    ("@mark.max_peak('10G', device=0)", None, 0, 10),
    ("@mark.profiled_vram_gib(4.5)", None, 5, 4.5),
    ("@mark.profiled_vram_gib(4) @mark.max_leak", _RUN, 5, 4),
    ("@mark.profiled_vram_gib(4)", _PEAKS, 5, 4),
    ("@mark.profiled_vram_gib(4) @mark.max_peak('10G')", None, 5, 10),
    ("@mark.max_leak", _RUN, 5, 80),
    ("@mark.max_leak", _PEAKS, 5, 70),
    ("@mark.max_leak", None, 5, 5),
    ("@mark.max_peak('fp16_size')", None, 5, 5),  # of what size a model will be nobody knows yet
    ("@mark.max_peak('10G', warmup=False)", None, 5, 5),  # the warm-up comes on top
    ("@mark.max_peak('10G', device='cuda:1')", None, 5, 5),
    ("@mark.max_leak", Settings(share=7 * GIB), 0, 7),
    ("@mark.ranks(2) @mark.max_peak('10G')", None, 0, 10),
    ("@mark.ranks(2) @mark.max_peak('10G', rank='max')", None, 0, 10),
)
"""Markers, the run's settings, the last peak in GiB, and what is reserved."""

SHARES = (
    ("@mark.max_leak", EQUAL, 4),
    ("@mark.max_leak", WHOLE, 1),
    ("@mark.max_peak('fp16_size')", EQUAL, 4),
    ("@mark.ranks(2)", EQUAL, 1),
    ("@mark.ranks(2) @mark.max_peak('10G', rank='sum')", EQUAL, 1),
    ("@mark.ranks(2) @mark.max_peak('10G', rank=0)", EQUAL, 1),
)

NO_NUMBERS = ("", "'20'", "True", "0", "-1", "float('nan')", "1, 2", "None")


def items_with(pytester: pytest.Pytester, marks: Iterable[str]) -> list[pytest.Item]:
    """One test for each: they are collected once, since that is what takes time."""
    tests = [text.replace(" @", "\n@") + f"\ndef test_{number}(): ...\n" for number, text in enumerate(marks)]
    pytester.makeini("[pytest]\nmarkers = profiled_vram_gib")
    return list(pytester.getitems("from pytest import mark\n" + "\n".join(tests)))


def need(item: pytest.Item, settings: Settings) -> Need | None:
    ranks = promises.read_ranks(item)
    return need_of(item, promises.read_plan(item, settings), settings, parts=4, ranked=ranks is not None)


def test_a_number_of_bytes(pytester: pytest.Pytester) -> None:
    found = []
    for item, (marks, settings, recorded, _) in zip(
        items_with(pytester, (one[0] for one in BYTES)), BYTES, strict=True
    ):
        item.config.stash[RECORDED] = {item.nodeid: recorded * GIB} if recorded else {}
        reserved = need(item, settings or Settings())
        assert isinstance(reserved, Bytes), marks
        found.append((marks, settings, recorded, reserved.bytes / GIB))
    assert found == list(BYTES)


def test_who_says_nothing_has_a_share(pytester: pytest.Pytester) -> None:
    items = items_with(pytester, (one[0] for one in SHARES))
    for item, (marks, share, parts) in zip(items, SHARES, strict=True):
        assert need(item, Settings(share=share)) == Share(parts), marks


def test_who_says_nothing_of_memory_takes_no_part(pytester: pytest.Pytester) -> None:
    (item,) = items_with(pytester, [""])
    item.config.stash[RECORDED] = {item.nodeid: GIB}
    assert need(item, Settings()) is None


def test_a_group_in_a_test_s_name_hides_no_recorded_peak(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytest-xdist writes it there (`--dist loadgroup`)."""
    (item,) = items_with(pytester, ["@mark.max_leak"])
    item.config.stash[RECORDED] = {item.nodeid: 5 * GIB}
    with monkeypatch.context() as grouped:
        grouped.setattr(type(item), "nodeid", f"{item.nodeid}@group")
        found = need(item, Settings())
    assert isinstance(found, Bytes)
    assert found.bytes == 5 * GIB


def test_where_a_number_is_from_is_known(pytester: pytest.Pytester) -> None:
    (item,) = items_with(pytester, ["@mark.max_peak('10G')"])
    found = need(item, Settings())
    assert isinstance(found, Bytes)
    assert found.source.endswith(".py:2 @max_peak")


def test_a_profile_that_says_no_number_is_an_error(pytester: pytest.Pytester) -> None:
    for item in items_with(pytester, (f"@mark.profiled_vram_gib({written})" for written in NO_NUMBERS)):
        with pytest.raises(BadInput, match=r"@pytest.mark.profiled_vram_gib\(.*\) is not a number of GiB: write 1.5"):
            need(item, Settings())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(), None),
        (_RUN, 80 * GIB),
        (_PEAKS, 70 * GIB),
        (Settings(share=GIB), GIB),
        (Settings(defaults={"max_peak": Given("fp16_size", "ini")}), None),
    ],
)
def test_what_every_test_of_a_run_may_take(settings: Settings, expected: int | None) -> None:
    assert known_limit(settings) == expected
