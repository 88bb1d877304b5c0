"""The driver's library as it is called: against one that is built here, with the structures of nvml.h."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pytest_memleak.errors import Unavailable
from pytest_memleak.workers import driver, nvml
from pytest_memleak.workers.driver import Device

_COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
_GIB = 1024**3
_ALL = tuple(Device(f"GPU-{number}", f"Card {number}", 99 * _GIB, sliced=number == 12) for number in (10, 11, 12))

_LIBRARY = r"""
#include <stdio.h>
#include <string.h>

typedef void *nvmlDevice_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } nvmlMemory_v2_t;
typedef struct {
    unsigned int pid; unsigned long long usedGpuMemory; unsigned int gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_t;
enum { OK = 0, INVALID = 2, TOO_SMALL = 7 };
static const unsigned long long GIB = 1ULL << 30;
#ifndef LOST
#define LOST 99
#endif
#ifndef SILENT
#define SILENT 99
#endif
#ifndef LASTS
#define LASTS 99
#endif
static int cards[] = {10, 11, 12};

int nvmlInit_v2(void) { return STATUS; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 3; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    if (index > 2) return INVALID;
    *device = &cards[index];
    return index == LOST ? 15 : OK;
}
int nvmlDeviceGetUUID(nvmlDevice_t device, char *text, unsigned int length) {
    return snprintf(text, length, "GPU-%d", *(int *)device) < (int)length ? OK : TOO_SMALL;
}
int nvmlDeviceGetName(nvmlDevice_t device, char *text, unsigned int length) {
    snprintf(text, length, "Card %d", *(int *)device);
    return OK;
}
static int asked = 0;
static int fails(nvmlDevice_t device) { return *(int *)device == SILENT || (*(int *)device == 12 && asked++ >= LASTS); }
int nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    if (fails(device)) return 15;
    memory->total = 100 * GIB; memory->free = 60 * GIB; memory->used = 40 * GIB;
    return OK;
}
#ifdef NEW
int nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    if (fails(device)) return 15;
    if (memory->version != (sizeof(nvmlMemory_v2_t) | 2 << 24)) return INVALID;
    memory->total = 100 * GIB; memory->reserved = 1 * GIB; memory->free = 60 * GIB; memory->used = 39 * GIB;
    return OK;
}
int nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *now, unsigned int *next) {
    if (*(int *)device == 10) return 3;
    *now = *(int *)device == 12; *next = 1;
    return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *found) {
    unsigned int many = *(int *)device == 10 ? 200 : 2, room = *count;
    *count = many;
    if (*(int *)device == 12) { *count = 1; found[0].pid = 7; found[0].usedGpuMemory = ~0ULL; return OK; }
    if (room < many) return TOO_SMALL;
    for (unsigned int one = 0; one < many; one++) {
        memset(&found[one], 0, sizeof *found);
        found[one].pid = 1000 + one / 2;
        found[one].usedGpuMemory = (one + 1) * GIB;
    }
    return OK;
}
#endif
"""


@pytest.fixture(autouse=True)
def _needs_a_compiler() -> None:
    if _COMPILER is None:
        pytest.skip("needs a C compiler")


def built(folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    source, library = folder / "nvml.c", folder / "libnvml.so"
    source.write_text(_LIBRARY)
    assert _COMPILER is not None
    subprocess.run([_COMPILER, "-shared", "-fPIC", *flags, str(source), "-o", str(library)], check=True)
    monkeypatch.setattr(nvml, "_LIBRARY", str(library))


def test_cards_and_what_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(tmp_path, monkeypatch, "-DSTATUS=0", "-DNEW")
    there = nvml.Nvml()
    assert there.devices() == _ALL
    assert there.used("GPU-11") == 39 * _GIB


@pytest.mark.parametrize(
    ("flag", "trouble"),
    [
        ("-DLOST=1", Device("", "", 0, trouble="nvmlDeviceGetHandleByIndex_v2: error 15")),
        ("-DSILENT=11", Device("GPU-11", "Card 11", 0, trouble="nvmlDeviceGetMemoryInfo: error 15")),
    ],
    ids=["lost", "no word of its memory"],
)
def test_one_card_in_trouble_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, trouble: Device
) -> None:
    built(tmp_path, monkeypatch, "-DSTATUS=0", "-DNEW", flag)
    there = nvml.Nvml()
    assert there.devices() == (_ALL[0], trouble, _ALL[2])
    assert there.used("GPU-12") == 39 * _GIB


def test_a_card_that_is_lost_later_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(tmp_path, monkeypatch, "-DSTATUS=0", "-DNEW", "-DLASTS=1")
    there = nvml.Nvml()
    assert there.devices() == _ALL
    with pytest.raises(Unavailable, match=r"GPU-12 is free \(nvmlDeviceGetMemoryInfo: error 15\). See what"):
        there.used("GPU-12")


def test_processes_and_their_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(tmp_path, monkeypatch, "-DSTATUS=0", "-DNEW")
    there = nvml.Nvml()
    assert there.processes("GPU-11") == {1000: 3 * _GIB}  # twice in the list: of two instances of the card
    many = there.processes("GPU-10")
    assert many is not None
    assert len(many) == 100  # more than there was room for at first
    assert sum(many.values()) == 200 * 201 // 2 * _GIB
    assert there.processes("GPU-12") is None  # the driver does not know how much


def test_an_older_driver_tells_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(tmp_path, monkeypatch, "-DSTATUS=0")
    there = nvml.Nvml()
    assert there.devices()[0].total == 100 * _GIB
    assert there.used("GPU-10") == 40 * _GIB
    assert there.processes("GPU-10") is None


def test_a_driver_that_fails_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(tmp_path, monkeypatch, "-DSTATUS=9")
    driver.find.cache_clear()
    try:
        assert driver.find() is None
    finally:
        driver.find.cache_clear()


def test_without_a_library_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "_LIBRARY", str(tmp_path / "nothing.so"))
    driver.find.cache_clear()
    try:
        assert driver.find() is None
    finally:
        driver.find.cache_clear()
