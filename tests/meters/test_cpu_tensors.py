"""The gauge of CPU tensors, on both engines."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pytest_memleak.errors import BadInput, Unavailable
from pytest_memleak.events import garbage, native
from pytest_memleak.events.cpu_allocator import CpuAllocator
from pytest_memleak.events.dispatch import DispatchTracker
from pytest_memleak.events.engine import CpuEngine
from pytest_memleak.meters.gauge import SharedGauge
from pytest_memleak.meters.reading import Reading
from pytest_memleak.meters.tensors import CpuTensors

MIB = 1024**2


def exact_engine() -> CpuEngine:
    try:
        return CpuAllocator.load()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(params=[exact_engine, DispatchTracker], ids=["exact", "dispatch"])
def gauge(request: pytest.FixtureRequest) -> Iterator[CpuTensors]:
    one = CpuTensors(request.param())
    garbage.settle()
    yield one
    one.engine.set_cap(None)
    garbage.thaw()


@pytest.fixture
def exact() -> Iterator[CpuTensors]:
    one = CpuTensors(exact_engine())
    yield one
    one.set_cap(None)


class Held:
    """Keeps what a test made until its reading is done."""

    def __init__(self, gauge: CpuTensors) -> None:
        self._window = SharedGauge(gauge).window()
        self.kept: list[object] = []

    def __enter__(self) -> Held:
        self._window.open()
        return self

    def __exit__(self, *raised: object) -> None:
        self.reading: Reading = self._window.close()

    @property
    def grown(self) -> int:
        """Of what the engine counts; what it does not is `unseen`."""
        return self.reading.end["allocated"] - self.reading.base["allocated"]

    @property
    def peak(self) -> int:
        return self.reading.peak["allocated"] - self.reading.base["allocated"]


def test_window_sees_peak_and_growth(gauge: CpuTensors) -> None:
    with Held(gauge) as held:
        held.kept.append(torch.ones(1000))
        torch.ones(5000)
    assert (held.peak, held.grown) == (24_000, 4000)
    assert (held.reading.unseen, held.reading.blind) == (0, None)


def test_threads_are_seen(gauge: CpuTensors) -> None:
    with ThreadPoolExecutor(1) as older:
        older.submit(int).result()
        with Held(gauge) as held:
            thread = threading.Thread(target=lambda: held.kept.append(torch.ones(1000)))
            thread.start()
            thread.join()
            with ThreadPoolExecutor(2) as pool:
                held.kept.extend(pool.map(torch.ones, [1000, 1000]))
            held.kept.append(older.submit(torch.ones, 1000).result())
    assert held.grown == 16_000
    assert held.reading.blind is None


def test_what_lives_between_windows_is_base(gauge: CpuTensors) -> None:
    older = torch.ones(1000)
    with Held(gauge) as held:
        torch.ones(10)
        del older
    assert held.grown == -4000
    assert held.peak == 40
    assert held.reading.blind is None


def test_weights_loaded_in_threads_are_seen_to_the_byte(gauge: CpuTensors, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=500,
    )
    transformers.LlamaForCausalLM(config).half().save_pretrained(tmp_path)
    garbage.settle()
    with Held(gauge) as held:
        model = transformers.LlamaForCausalLM.from_pretrained(tmp_path, torch_dtype=torch.float32)
        held.kept.append(model)
    tensors = [*model.parameters(), *model.buffers()]
    expected = sum(
        size for size in {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values()
    )
    assert sum(p.numel() for p in model.parameters()) * 4 <= expected
    assert held.grown == expected
    assert held.reading.blind is None


def test_weights_that_stay_in_their_file_are_unseen_and_mapped(gauge: CpuTensors, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(5000), "b": torch.ones(3000)}, tmp_path / "weights.pt")
    with Held(gauge) as held:
        held.kept.append(torch.load(tmp_path / "weights.pt", mmap=True))
    assert held.grown == 0
    assert held.reading.unseen == gauge.mapped == 32_000
    assert gauge.unallocated == 0
    held.kept.clear()
    assert gauge.unseen() == 0


def test_numpys_memory_is_unseen_and_counted_once(gauge: CpuTensors) -> None:
    array = np.ones(5000)
    with Held(gauge) as held:
        held.kept.extend((torch.from_numpy(array), torch.from_numpy(array), torch.from_numpy(array[100:])))
    assert held.grown == 0
    assert held.reading.unseen == gauge.unallocated == 40_000
    assert held.reading.blind is None


def test_a_view_by_way_of_numpy_is_not_unseen(gauge: CpuTensors) -> None:
    with Held(gauge) as held:
        tensor = torch.ones(5000)
        held.kept.extend((tensor, torch.from_numpy(tensor.numpy()[10:])))
    assert held.grown == 20_000
    assert held.reading.unseen == 0


def test_unseen_memory_stays_known_when_newcomers_are_frozen(gauge: CpuTensors) -> None:
    held = torch.from_numpy(np.ones(1000))
    garbage.settle()
    assert gauge.unseen() == 8000
    del held
    assert gauge.unseen() == 0


@pytest.mark.parametrize("make", [exact_engine, DispatchTracker])
def test_foreign_memory_that_was_there_first_is_in_the_level(make: type[CpuEngine]) -> None:
    older = torch.from_numpy(np.ones(1000))
    engine = make()
    gauge = CpuTensors(engine)
    level = gauge.now()["allocated"]
    peak = gauge.take_peaks()["allocated"]
    assert gauge.unseen() == 0
    assert peak >= level
    del older
    assert gauge.now()["allocated"] == level - 8000


def test_a_leak_is_found_with_the_tensors_that_hold_it(gauge: CpuTensors) -> None:
    gauge.begin()
    try:
        mark = gauge.mark()
        leaked, _dropped = torch.ones(1000), torch.ones(500)
        view = leaked[5:]
        del _dropped
        found = gauge.leaked(mark)
        assert found == {leaked.data_ptr(): 4000}
        owners = gauge.tensors_at(found)
        assert len(owners) == 2
        assert any(owner is leaked for owner in owners)
        assert any(owner is view for owner in owners)
    finally:
        gauge.end()


def test_only_the_tracker_can_be_blind(gauge: CpuTensors) -> None:
    import _thread

    done = threading.Event()
    with Held(gauge) as held:

        def make() -> None:
            held.kept.append(torch.ones(1000))
            done.set()

        _thread.start_new_thread(make, ())
        assert done.wait(20)
    if gauge.can_enforce:
        assert (held.grown, held.reading.blind) == (4000, None)
    else:
        assert "4,000 B of CPU tensors" in (held.reading.blind or "")
    # It is told once: the next window begins with all that is alive.
    with Held(gauge) as next_one:
        pass
    assert next_one.reading.blind is None


def test_the_cap_of_the_exact_engine_refuses_and_is_lifted(exact: CpuTensors) -> None:
    exact.set_cap(exact.now()["allocated"] + MIB)
    with Held(exact) as held:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2 * MIB, dtype=torch.uint8)
    assert held.reading.refusals == 1
    exact.set_cap(None)
    torch.empty(2 * MIB, dtype=torch.uint8)


def test_the_tracker_refuses_to_promise_a_cap() -> None:
    gauge = CpuTensors(DispatchTracker())
    assert not gauge.can_enforce
    with pytest.raises(Unavailable, match="cannot be enforced"):
        gauge.set_cap(MIB)
    gauge.set_cap(None)


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.ENGINE_VARIABLE, "dispatch")
    gauge = CpuTensors()
    assert isinstance(gauge.engine, DispatchTracker)
    assert "asks for the tracker" in (gauge.fallback_reason or "")
    monkeypatch.setenv(native.ENGINE_VARIABLE, "exakt")
    with pytest.raises(BadInput, match=r"'exakt' is none of auto, exact, dispatch"):
        CpuTensors()


def test_without_the_library_auto_falls_back_and_exact_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuAllocator, "_instance", None)
    monkeypatch.setattr(native, "_loaded", Unavailable("no compiler for this test"))
    monkeypatch.setenv(native.ENGINE_VARIABLE, "auto")
    gauge = CpuTensors()
    assert isinstance(gauge.engine, DispatchTracker)
    assert gauge.fallback_reason == "no compiler for this test"
    assert "dispatch" in gauge.how
    monkeypatch.setenv(native.ENGINE_VARIABLE, "exact")
    with pytest.raises(Unavailable, match="no compiler for this test"):
        CpuTensors()


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory is looked up in /proc")
def test_shared_memory_is_never_lost(gauge: CpuTensors) -> None:
    with Held(gauge) as held:
        held.kept.append(torch.ones(5000).share_memory_())
    assert held.grown + held.reading.unseen == 20_000
    assert gauge.mapped == 0


def transient_numpy() -> None:
    torch.from_numpy(np.ones(MIB, dtype=np.uint8))


def transient_buffer() -> None:
    torch.frombuffer(bytearray(MIB), dtype=torch.uint8)


def transient_shared() -> None:
    torch.UntypedStorage._new_shared(MIB)


@pytest.mark.parametrize("make", [transient_numpy, transient_buffer, transient_shared])
def test_foreign_memory_that_is_gone_at_the_end_is_in_the_unseen_peak(
    gauge: CpuTensors, make: Callable[[], None]
) -> None:
    held = np.ones(MIB, dtype=np.uint8)
    gauge.begin()
    try:
        kept = torch.from_numpy(held)
        again = torch.from_numpy(held[10:])
        make()
        assert gauge.unseen() == MIB
        assert gauge.unseen_peak() == 2 * MIB
        assert gauge.unseen_peak() == MIB
        del kept, again
        assert gauge.unseen_peak() == MIB
        assert gauge.unseen_peak() == 0
        own = torch.ones(MIB)
        torch.from_numpy(own.numpy()[5:])
        torch.asarray(own.numpy()), torch.as_tensor([1.0])
        assert gauge.unseen_peak() == 0
    finally:
        gauge.end()


def test_a_reading_looks_at_the_objects_of_the_process_once(gauge: CpuTensors, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    in_sight = garbage.in_sight

    def looking() -> list[object]:
        found = in_sight()
        looks.append(len(found))
        return found

    window = SharedGauge(gauge).window()
    window.open()
    kept = torch.from_numpy(np.ones(MIB, dtype=np.uint8))
    monkeypatch.setattr(garbage, "in_sight", looking)
    assert window.read().unseen == MIB
    assert len(looks) == 1
    again = torch.from_numpy(np.ones(MIB, dtype=np.uint8))
    assert gauge.unseen() == 2 * MIB, "what is asked outside of a reading is of its own moment"
    del kept, again
    window.close()


def test_files_that_are_mapped_for_a_while_are_told_apart(gauge: CpuTensors, tmp_path: Path) -> None:
    save_file({"weight": torch.ones(MIB // 4)}, tmp_path / "model.safetensors")
    torch.save({"weight": torch.ones(MIB // 4)}, tmp_path / "model.bin")
    gauge.begin()
    try:
        loaded = load_file(tmp_path / "model.safetensors")
        del loaded
        assert MIB <= gauge.mapped_peak() <= 2 * MIB
        loaded = torch.load(tmp_path / "model.bin", mmap=True)
        del loaded
        assert MIB <= gauge.mapped_peak() <= 2 * MIB
        assert gauge.unseen_peak() == 0
    finally:
        gauge.end()


def test_loaded_weights_are_never_lost(gauge: CpuTensors, tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(MIB // 4)}, tmp_path / "model.bin")
    with Held(gauge) as held:
        loaded = torch.load(tmp_path / "model.bin")
        del loaded
        unseen = gauge.unseen_peak()
    assert MIB <= held.peak + unseen <= MIB + MIB // 2


def test_outside_windows_nothing_is_wrapped(gauge: CpuTensors) -> None:
    owned = vars(torch.UntypedStorage).copy()
    before = (torch.from_numpy, torch.frombuffer, torch.asarray, torch.from_file, torch._utils._rebuild_tensor)
    gauge.begin()
    gauge.begin()
    gauge.end()
    assert torch.from_numpy is not before[0]
    gauge.end()
    after = (torch.from_numpy, torch.frombuffer, torch.asarray, torch.from_file, torch._utils._rebuild_tensor)
    assert after == before
    assert dict(vars(torch.UntypedStorage)) == dict(owned)
    assert torch.UntypedStorage(4).nbytes() == 4
