from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pytest_memleak import fixes
from pytest_memleak.cli import doctor, software
from pytest_memleak.cli.caps import caps
from pytest_memleak.cli.devices import accelerators
from pytest_memleak.cli.finding import Finding
from pytest_memleak.cli.host import host_memory
from pytest_memleak.cli.main import main
from pytest_memleak.cli.upstream import upstream
from pytest_memleak.errors import Unavailable
from pytest_memleak.fixes.frame import Fix
from pytest_memleak.support import at_least

GIB = 1024**3


def memleak(*arguments: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; modules in `folder` come before the installed ones."""
    path = {"PYTHONPATH": str(folder)} if folder else {}
    return subprocess.run(
        [sys.executable, "-m", "pytest_memleak", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | path | environment,
    )


def fake_torch(folder: Path, source: str) -> Path:
    (folder / "torch.py").write_text(source)
    return folder


def test_the_doctor_tells_what_this_machine_can_do() -> None:
    pytest.importorskip("torch")
    done = memleak("doctor", "--json")
    data = json.loads(done.stdout)
    assert data["schema"] == "pytest-memleak-doctor/1"
    assert done.returncode == (0 if data["cap_can_be_enforced"] else 1)
    groups = {finding["group"] for finding in data["findings"]}
    assert groups == {"software", "known bugs", "accelerators", "caps", "CPU tensors", "simulation", "host memory"}
    told = doctor.as_text([Finding(**finding) for finding in data["findings"]])
    assert all(finding["what"] in told for finding in data["findings"])


def test_a_bug_of_an_installed_release_is_told_with_what_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fix(affected: str) -> Fix:
        return Fix(
            "pile", mends="loads pile up", links=(), affected={"pytest": affected}, patches=list, bugs={"": list}
        )

    found = {"has": fix(">=1"), "has_not": fix("<1"), "lacks": fix("")}
    found["lacks"].affected = {"no-such-package": ">=1"}
    monkeypatch.setattr(fixes, "names", lambda: tuple(found))
    monkeypatch.setattr(fixes, "find", found.get)
    told = {finding.what: (finding.mark, finding.detail) for finding in upstream()}
    here = f"pytest {pytest.__version__}"
    assert told == {
        "has": ("partly", f'{here} has the bug: loads pile up; pytest_memleak.fixes.apply("has") mends it'),
        "has_not": ("yes", f"{here} does not need it: the bug is in pytest <1"),
        "lacks": ("-", "no-such-package is not installed"),
    }


ABSENT = "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"


def test_without_torch_the_doctor_says_so_and_what_to_do(tmp_path: Path) -> None:
    done = memleak("doctor", folder=fake_torch(tmp_path, ABSENT))
    assert done.returncode == 1
    (line,) = (line for line in done.stdout.splitlines() if line.split()[:2] == ["no", "torch"])
    assert "not installed" in line
    assert "pip install" in line
    assert "RssAnon" in done.stdout  # what needs no torch is told all the same
    assert done.stdout.splitlines()[-1] == "a cap cannot be enforced here"
    assert done.stderr == ""


def test_without_torch_the_data_says_the_same(tmp_path: Path) -> None:
    done = memleak("doctor", "--json", folder=fake_torch(tmp_path, ABSENT))
    assert done.returncode == 1
    assert json.loads(done.stdout)["cap_can_be_enforced"] is False


def test_a_torch_that_is_too_old_is_named_with_the_floor(tmp_path: Path) -> None:
    done = memleak("doctor", folder=fake_torch(tmp_path, "__version__ = '2.5.1+cu121'"))
    assert done.returncode == 1
    assert "2.5.1+cu121 is older than 2.6" in done.stdout


@pytest.mark.parametrize(
    "source",
    ["raise OSError('libcudart.so.12: cannot open')", "import no_such_part_of_torch", "raise RuntimeError('x\\ny')"],
)
def test_a_torch_that_cannot_be_imported_is_not_called_missing(tmp_path: Path, source: str) -> None:
    done = memleak("doctor", folder=fake_torch(tmp_path, source))
    assert done.returncode == 1
    assert "is installed but cannot be imported" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [(), ("docter",), ("doctor", "--jsno"), ("doctor", "extra")])
def test_usage_errors_leave_with_two(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: memleak" in capsys.readouterr().err


def test_help_does_not_need_torch(tmp_path: Path) -> None:
    done = memleak("doctor", "--help", folder=fake_torch(tmp_path, ABSENT))
    assert done.returncode == 0
    assert "Exit status" in done.stdout


def test_a_terminal_that_lacks_characters_gets_them_escaped(tmp_path: Path) -> None:
    done = memleak("doctor", folder=fake_torch(tmp_path, "raise OSError('Gerät fehlt')"), PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert "Ger\\xe4t fehlt" in done.stdout


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "pytest_memleak", "doctor"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(fake_torch(tmp_path, ABSENT))},
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("findings", "status"),
    [
        ([Finding("caps", "yes", "cpu", "", caps=True)], 0),
        ([Finding("caps", "no", "cuda:0", ""), Finding("caps", "yes", "cpu", "", caps=True)], 0),
        ([Finding("caps", "partly", "cpu", "judged at the end")], 1),
        ([Finding("software", "no", "pytest", "too old"), Finding("caps", "yes", "cpu", "", caps=True)], 1),
        ([Finding("software", "yes", "pytest", "9"), Finding("accelerators", "yes", "cuda:0", "")], 1),
    ],
)
def test_the_exit_status_is_about_caps_that_hold(findings: list[Finding], status: int) -> None:
    assert doctor.exit_status(findings) == status
    assert ("cannot" in doctor.as_text(findings).splitlines()[-1]) == bool(status)


def test_each_finding_is_one_aligned_line_under_its_group() -> None:
    text = doctor.as_text(
        [
            Finding("software", "partly", "a", "first\n  second"),
            Finding("caps", "no", "longer name", "x"),
            Finding("software", "yes", "b", "y"),
        ]
    )
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["software", "partly", "yes", "caps", "no"]
    assert lines[1].endswith("first second")
    assert lines[1].index("first") == lines[2].index("y", lines[2].index("b")) == lines[4].index("x")


@pytest.mark.parametrize(
    ("version", "fits"),
    [("2.6", True), ("2.6.0a0+ecf3bae", True), ("2.13.0+cpu", True), ("2.5.9", False), ("3.0", True), ("", False)],
)
def test_versions_are_held_against_the_floor_as_numbers(version: str, fits: bool) -> None:
    assert at_least(version, "2.6") is fits


def test_a_pytest_below_the_floor_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_installed", lambda package: "8.2.2" if package == "pytest" else "1")
    (found,) = (finding for finding in software.basics() if finding.what == "pytest")
    assert found.mark == "no"
    assert "8.3 or newer is needed" in found.detail


# What follows stands in for machines that this one is not: a module with torch's names and a given behaviour.


class OutOfMemory(RuntimeError):
    pass


class FakeCuda:
    """A card of 80 GiB whose allocator keeps, or ignores, its fraction."""

    def __init__(self, *, obeys: bool = True, free: int = 70 * GIB, broken: str = "") -> None:
        self.obeys, self.free, self.broken = obeys, free, broken
        self.fraction = 1.0

    def get_device_name(self, index: int) -> str:
        return "Fake H100"

    def mem_get_info(self, index: int) -> tuple[int, int]:
        if self.broken:
            raise RuntimeError(self.broken)
        return self.free, 80 * GIB

    def memory_stats(self, index: int) -> dict[str, int]:
        return {"allocated_bytes.all.peak": 512}

    def set_per_process_memory_fraction(self, fraction: float, index: int) -> None:
        self.fraction = fraction

    def get_per_process_memory_fraction(self, index: int) -> float:
        return self.fraction

    def empty_cache(self) -> None:
        pass

    def init(self) -> None:
        raise RuntimeError("No CUDA GPUs are available\nmore")


def torch_with(
    kind: str | None, module: Any = None, *, cuda: str | None = "12.8", hip: str | None = None, stats: bool = True
) -> Any:
    fake: Any = ModuleType("torch")
    fake.__version__ = "2.9.0"
    fake.version = SimpleNamespace(cuda=cuda, hip=hip)
    fake.OutOfMemoryError = OutOfMemory
    fake.uint8 = object()
    fake.cuda = module if kind == "cuda" else FakeCuda()
    fake.accelerator = SimpleNamespace(
        is_available=lambda: kind is not None,
        device_count=lambda: 1,
        current_accelerator=lambda: SimpleNamespace(type=kind),
        memory_stats=lambda index: {"allocated_bytes.all.peak": 1} if stats else {},
    )
    fake.get_device_module = lambda name: module

    def empty(count: int, dtype: object, device: str) -> object:
        if device.startswith("cuda") and module.obeys and count > module.fraction * 80 * GIB:
            raise OutOfMemory
        return object()

    fake.empty = empty
    return fake


def one(findings: list[Finding], what: str) -> Finding:
    (found,) = (finding for finding in findings if finding.what == what)
    return found


@pytest.fixture
def no_cpu_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from pytest_memleak.events.cpu_allocator import CpuAllocator

    def load() -> CpuAllocator:
        raise Unavailable("there is no C++ compiler")

    monkeypatch.setattr(CpuAllocator, "load", load)


@pytest.mark.usefixtures("no_cpu_engine")
def test_a_card_that_obeys_its_cap_is_found_out_by_trying_and_left_as_it_was() -> None:
    card = FakeCuda()
    found = one(caps(torch_with("cuda", card)), "cuda:0")
    assert (found.mark, found.caps) == ("yes", True)
    assert card.fraction == 1.0
    device = one(accelerators(torch_with("cuda", card)), "cuda:0")
    assert device.mark == "yes"
    assert "Fake H100, 80 GiB, 70 GiB free" in device.detail


@pytest.mark.usefixtures("no_cpu_engine")
def test_a_card_that_ignores_its_cap_is_a_no() -> None:
    card = FakeCuda(obeys=False)
    found = caps(torch_with("cuda", card))
    assert (one(found, "cuda:0").mark, one(found, "cuda:0").caps) == ("no", False)
    assert doctor.exit_status(found) == 1
    assert card.fraction == 1.0


@pytest.mark.usefixtures("no_cpu_engine")
def test_an_occupied_card_proves_nothing() -> None:
    found = one(caps(torch_with("cuda", FakeCuda(free=1024**2))), "cuda:0")
    assert found.mark == "no"
    assert "too little for a trial" in found.detail


@pytest.mark.usefixtures("no_cpu_engine")
def test_a_card_that_does_not_answer_is_reported_with_its_own_words() -> None:
    fake = torch_with("cuda", FakeCuda(broken="CUDA error: all devices are busy\nCompile with …"))
    for found in (one(accelerators(fake), "cuda:0"), one(caps(fake), "cuda:0")):
        assert found.mark == "no"
        assert found.detail.endswith("all devices are busy")


@pytest.mark.usefixtures("no_cpu_engine")
def test_other_accelerators_are_told_apart_by_what_torch_counts_there() -> None:
    module = SimpleNamespace()
    assert one(accelerators(torch_with("mps", module, stats=False)), "mps:0").mark == "no"
    assert one(accelerators(torch_with("xpu", module)), "xpu:0").mark == "partly"
    rocm = one(accelerators(torch_with("cuda", FakeCuda(), cuda=None, hip="6.2")), "cuda:0")
    assert rocm.mark == "partly"
    assert "ROCm" in rocm.detail
    assert one(caps(torch_with("xpu", module)), "xpu:0").mark == "no"


def test_a_cuda_build_without_a_card_gives_the_drivers_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (found,) = accelerators(torch_with(None))
    assert found.mark == "no"
    assert "No CUDA GPUs are available; the CPU stands in" in found.detail


def test_a_card_hidden_by_the_environment_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (found,) = accelerators(torch_with(None))
    assert "CUDA_VISIBLE_DEVICES='' hides every card" in found.detail


def test_a_driver_with_a_torch_not_built_for_it_is_a_no(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    device = tmp_path / "nvidia0"
    monkeypatch.setattr("pytest_memleak.cli.devices._SIGNS_OF_A_CARD", {"an NVIDIA driver": (str(device),)})
    assert accelerators(torch_with(None, cuda=None))[0].mark == "-"
    device.touch()
    (found,) = accelerators(torch_with(None, cuda=None))
    assert found.mark == "no"
    assert "an NVIDIA driver is here, but torch 2.9.0 is not built for it" in found.detail


@pytest.mark.usefixtures("no_cpu_engine")
def test_without_the_exact_engine_a_cap_on_the_cpu_is_judged_at_the_end_and_does_not_count() -> None:
    found = caps(torch_with(None))
    assert one(found, "cpu").mark == "partly"
    assert "judged at the end" in one(found, "cpu").detail
    assert "there is no C++ compiler" in one(found, "engine").detail
    assert doctor.exit_status(found) == 1


def test_the_cap_of_the_exact_engine_is_tried_and_lifted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from pytest_memleak.events.cpu_allocator import CpuAllocator

    class Engine:
        capped: list[int | None]

        def __init__(self) -> None:
            self.capped = []

        def current(self) -> int:
            return 5

        def set_cap(self, limit: int | None) -> None:
            self.capped.append(limit)

    engine = Engine()
    monkeypatch.setattr(CpuAllocator, "load", lambda: engine)
    # This engine enforces nothing, and the doctor finds out.
    assert one(caps(torch), "cpu").mark == "no"
    assert engine.capped == [5 + 32 * 1024**2, None]


def proc(folder: Path, *, status: str = "VmHWM:  20 kB\nRssAnon:  12 kB\n", cgroup: str = "0::/ci/job\n") -> Path:
    (folder / "self").mkdir(parents=True)
    (folder / "self/status").write_text(status)
    (folder / "self/clear_refs").write_text("")
    (folder / "self/cgroup").write_text(cgroup)
    (folder / "meminfo").write_text("MemTotal: 1048576 kB\nMemAvailable: 524288 kB\n")
    return folder


def test_host_memory_tells_what_the_kernel_lets_read(tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    (groups / "ci/job").mkdir(parents=True)
    (groups / "ci/job/memory.max").write_text("max\n")
    (groups / "ci/memory.max").write_text(f"{4 * GIB}\n")
    found = host_memory(proc(tmp_path / "proc"), groups)
    assert [finding.mark for finding in found] == ["yes", "yes", "-", "-"]
    assert (tmp_path / "proc/self/clear_refs").read_text() == "5"
    assert "1 GiB, 512 MiB available" in one(found, "memory").detail
    assert "4 GiB" in one(found, "container").detail  # the limit of a group above


def test_a_limit_of_the_older_cgroups_is_found_and_its_infinity_is_none(tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    (groups / "memory/job").mkdir(parents=True)
    limit = groups / "memory/job/memory.limit_in_bytes"
    source = proc(tmp_path / "proc", cgroup="5:cpu,cpuacct:/x\n4:memory:/job\n")
    limit.write_text(f"{2 * GIB}")
    assert "2 GiB" in one(host_memory(source, groups), "container").detail
    limit.write_text("9223372036854771712")
    assert one(host_memory(source, groups), "container").detail == "no cgroup limit found"


def test_a_kernel_without_these_counters_is_reported(tmp_path: Path) -> None:
    old = host_memory(proc(tmp_path / "old", status="VmRSS: 1 kB\n"), tmp_path)
    assert one(old, "committed").mark == "no"
    assert "max_host_peak" in one(old, "committed").detail
    none = host_memory(tmp_path / "nowhere", tmp_path)
    assert [finding.mark for finding in none] == ["no", "partly", "-", "-"]
