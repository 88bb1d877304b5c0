"""Ranks that are played on the simulated card; see the files in played/, which have processes of their own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.alone import run_alone
from tests.conftest import Records, Run

HERE = Path(__file__).with_name("played")


@pytest.mark.parametrize("file", ["ranks.py", "collectives.py", "host.py", "shards.py"])
def test_played(file: str, pytester: pytest.Pytester) -> None:
    run_alone(pytester, HERE / file)


def test_with_accelerate(pytester: pytest.Pytester) -> None:
    if not find_spec("accelerate") or not find_spec("transformers"):
        pytest.skip("accelerate and transformers are not installed")
    run_alone(pytester, HERE / "prepared.py")


def test_a_budget_of_the_host_goes_by_what_is_committed(run_apart: Run, records: Records) -> None:
    result = run_apart(
        """
import pytest, torch
from pytest_memleak.ranks.played import playing

GIB = 1 << 28

def held():
    return torch.zeros(GIB // 64)

@pytest.mark.max_host_peak("1.5GiB")
def test_empty(card):
    with playing(1, 2) as played:
        kept = torch.empty(4 * GIB)
        kept[:GIB] = 1
        played.host.take()

@pytest.mark.max_host_peak("1.5GiB")
def test_zeros(card):
    with playing(1, 2) as played:
        torch.zeros(4 * GIB)
        played.host.take()

@pytest.mark.max_host_peak("1.5GiB")
def test_two_worlds_and_before(card):
    kept = held()
    for rank in range(2):
        with playing(rank, 2):
            torch.empty(4 * GIB)
            torch.zeros(GIB)

@pytest.mark.max_host_peak("1.5GiB")
def test_without_a_world(card):
    held()
""",
        "--gpu-backend=simulated:2xh200",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=3, failed=1)
    told = {name: one["results"][0] for name, one in records().items()}
    grown = {name: one["measured"] for name, one in told.items()}
    gib, small = 1 << 30, 1 << 20
    assert gib <= grown["test_empty"] < gib + small
    assert 4 * gib <= grown["test_zeros"] < 4 * gib + small
    assert gib + gib // 64 <= grown["test_two_worlds_and_before"] < gib + gib // 64 + small
    assert gib // 64 <= grown["test_without_a_world"] < gib // 64 + small
    assert {(one["device"], one["kind"], one["how"]) for one in told.values()} == {("host", "committed", "predicted")}
