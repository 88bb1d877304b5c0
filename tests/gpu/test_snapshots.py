"""torch's own snapshots of tests on a real card, whole enough for its viewer."""

from __future__ import annotations

import pickle

import pytest
import torch

from tests.conftest import Records, run_in_process

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TESTS = """
import pytest, torch

@pytest.mark.max_peak("10MiB")
def test_breaks():
    kept = [torch.empty(8, 1024, 1024, device="cuda") for _ in range(3)]

@pytest.mark.max_peak("1GiB")
def test_holds():
    torch.empty(1024, device="cuda")
"""


@pytest.mark.parametrize("when", ["always", "rerun"])
def test_saved_where_the_history_was_kept(pytester: pytest.Pytester, records: Records, when: str) -> None:
    pytester.makepyfile(test_it=TESTS)
    result = run_in_process(
        pytester,
        "--gpu-backend=real",
        f"--memleak-explain={when}",
        "--memleak-snapshots=shots",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=1, failed=1)
    files = sorted((pytester.path / "shots").iterdir())
    names = [path.name.partition("-test_")[2].partition("-")[0] for path in files]
    assert names == (["breaks", "holds"] if when == "always" else ["breaks"])
    snapshot = pickle.loads(files[0].read_bytes())
    assert {"segments", "device_traces"} <= snapshot.keys()
    entries = snapshot["device_traces"][0]
    allocated = [entry for entry in entries if entry["action"] == "alloc" and entry["size"] >= 8 << 20]
    assert len(allocated) == 3
    assert any(frame["filename"].endswith("test_it.py") for frame in allocated[0]["frames"])
    assert any(str(files[0].name) in note for note in records()["test_breaks"]["notes"])
    assert "memory snapshot for https://pytorch.org/memory_viz:" in " ".join(result.stdout.str().split())
