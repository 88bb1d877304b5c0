"""Committed memory is what the kernel says, its peak is sampled, and what can be given back does not count as held."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_memleak.errors import Unavailable
from pytest_memleak.events import native
from pytest_memleak.meters import c_library, host
from pytest_memleak.meters.gauge import SharedGauge
from pytest_memleak.meters.host import HostMemory, committed, settled, settles_by

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")

MIB = 1024**2


@pytest.fixture(params=["auto", "dispatch"], ids=["native", "python"])
def gauge(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostMemory]:
    monkeypatch.setenv(native.ENGINE_VARIABLE, request.param)
    one = HostMemory()
    if request.param == "auto" and one.fallback_reason:
        pytest.skip(one.fallback_reason)
    yield one
    one.end()


def rss_anon() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon:"))


def test_committed_is_the_kernels_rss_anon(gauge: HostMemory) -> None:
    block = b"\1" * (64 * MIB)
    assert abs(committed() - rss_anon()) <= MIB
    assert abs(gauge.now()["committed"] - rss_anon()) <= MIB
    del block


def test_a_peak_between_two_readings_is_sampled(gauge: HostMemory) -> None:
    window = SharedGauge(gauge).window()
    window.open()
    block = b"\1" * (128 * MIB)
    time.sleep(0.5)  # nothing shows from outside that a sample was taken, which on a busy machine may come late
    del block
    reading = window.close()
    assert reading.peak["committed"] - reading.base["committed"] >= 120 * MIB
    assert reading.grown("committed") <= 8 * MIB
    assert "sampled every" in reading.how
    assert (reading.unseen, reading.blind, reading.refusals) == (0, None, 0)


def test_what_goes_while_others_work_hides_no_growth(gauge: HostMemory) -> None:
    """Garbage of earlier tests, collected by a look at who holds what."""
    garbage = [b"\1" * (64 * MIB)]
    shared = SharedGauge(gauge)
    window = shared.window()
    window.open()
    blocks = [b"\1" * (40 * MIB)]
    with shared.aside():
        garbage.clear()
    blocks.append(b"\1" * (16 * MIB))
    reading = window.close()
    assert (reading.peak["committed"] - reading.base_at_peak["committed"]) // MIB in range(54, 62)


def test_the_peak_starts_anew(gauge: HostMemory) -> None:
    gauge.begin()
    block = b"\1" * (64 * MIB)
    high = gauge.take_peaks()["committed"]
    del block
    gauge.take_peaks()
    assert gauge.take_peaks()["committed"] <= high - 56 * MIB


def test_a_level_read_before_a_peak_is_taken_does_not_count_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = host._PythonSampler()
    reading, go = threading.Event(), threading.Event()

    def level() -> int:
        if threading.current_thread() is not sampling:
            return 10
        reading.set()
        assert go.wait(20)
        return 100

    monkeypatch.setattr(host, "committed", level)
    sampling = threading.Thread(target=sampler._sample)
    sampling.start()
    assert reading.wait(20)
    sampler.take_peak()
    go.set()
    sampling.join()
    assert sampler.take_peak() == 10


_NATIVE = """
#include "host_sampler.cpp"

int main() {
  const uint64_t before = look_of(highest.load());
  memleak_host_take_peak();
  const uint64_t most = uint64_t{1} << 30;
  raise_to(most, before);
  const bool late = memleak_host_take_peak() >= in_bytes(most);
  raise_to(most, look_of(highest.load()));
  const bool in_time = memleak_host_take_peak() == in_bytes(most);
  return late ? 1 : in_time ? 0 : 2;
}
"""


def test_a_native_sample_read_before_a_peak_is_taken_does_not_count_after_it(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    (tmp_path / "late.cpp").write_text(_NATIVE)
    sources = Path(native.__file__).parent
    command = [compiler, "-std=c++17", "-pthread", f"-I{sources}", "-o", str(tmp_path / "late"), "late.cpp"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "late"], check=False).returncode == 0


def test_the_growth_does_not_depend_on_what_was_freed_before(gauge: HostMemory) -> None:
    if "malloc_trim" not in settles_by():
        pytest.skip("this C library gives nothing back")

    def growth() -> int:
        window = SharedGauge(gauge).window()
        window.open()
        pieces = [b"\1" * 50_000 for _ in range(2000)]
        reading = window.close()
        # So many that the C library keeps their memory: the last piece pins the heap.
        kept.append(pieces[-1])
        return reading.peak["committed"] - reading.base["committed"]

    kept: list[bytes] = []
    growths = [growth(), growth(), growth()]
    assert min(growths) >= 50 * MIB


def test_nothing_samples_outside_windows() -> None:
    gauge = HostMemory()
    gauge.begin()
    gauge.end()
    gauge.take_peaks()
    before = committed()
    block = b"\1" * (64 * MIB)
    time.sleep(0.05)  # a sampler left running would have seen it
    del block
    assert gauge.take_peaks()["committed"] <= before + 16 * MIB


def test_the_python_sampler_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.ENGINE_VARIABLE, "dispatch")
    gauge = HostMemory()
    gauge.begin()
    (sampler,) = [thread for thread in threading.enumerate() if thread.name == "memleak-host"]
    gauge.end()
    sampler.join(20)
    assert not sampler.is_alive()


def test_resident_high_water_stands_beside_it(gauge: HostMemory) -> None:
    assert gauge.high_water() == (None, "no window was opened yet")
    gauge.begin()
    before, label = gauge.high_water()
    if before is None:
        pytest.skip(label)
    block = b"\1" * (64 * MIB)
    del block
    after, label = gauge.high_water()
    assert after is not None
    assert after - before >= 60 * MIB
    assert "mapped files included" in label


def test_a_high_water_that_cannot_be_reset_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_reset_high_water", lambda: "the resident high-water cannot be reset here (Denied)")
    gauge = HostMemory()
    gauge.begin()
    gauge.end()
    assert gauge.high_water() == (None, "the resident high-water cannot be reset here (Denied)")


def test_settled_gives_back_what_the_c_library_kept() -> None:
    if "no malloc_trim" in settles_by():
        pytest.skip(settles_by())
    before = settled()
    blocks = [b"\1" * 60_000 for _ in range(1000)]
    last = blocks[-1]  # holds the heap's end, so that free alone gives nothing back
    del blocks
    kept = committed() - before
    assert settled() - before < min(kept, 16 * MIB)
    del last


def test_settled_without_malloc_trim_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_library, "_malloc_trim", lambda: None)
    assert settled() > 0
    assert "no malloc_trim" in settles_by()


def test_elsewhere_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(Unavailable, match="this is darwin"):
        HostMemory()
