"""NVIDIA's driver, asked through its management library, which comes with it.

A few functions by ctypes, as torch itself asks how many cards there are: nothing to install, no context on any card.
They and their structures are as in nvml.h since driver 510; each that is newer than 450 has an older one to go back to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from pytest_memleak.errors import Unavailable
from pytest_memleak.workers.driver import Device

_LIBRARY = "libnvidia-ml.so.1"
_TOO_SMALL = 7
_UNKNOWN = 2**64 - 1
_TEXT = 96


class NvmlError(Exception):
    """The driver's answer was an error."""


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _MemoryV2(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint),
        ("total", ctypes.c_ulonglong),
        ("reserved", ctypes.c_ulonglong),  # the driver's own: nobody can have it
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("bytes", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class Nvml:
    def __init__(self) -> None:
        self._library = ctypes.CDLL(_LIBRARY)
        self._call("nvmlInit_v2")
        self._devices, self._handles = self._found()

    def devices(self) -> tuple[Device, ...]:
        return self._devices

    def used(self, key: str) -> int:
        try:
            total, free = self._memory(self._handles[key])
        except NvmlError as error:
            raise Unavailable(
                f"the driver does not tell any more how much of card {key} is free ({error}). See what nvidia-smi says "
                "of it, and name the other cards in CUDA_VISIBLE_DEVICES, or share none (--memleak-share=off)"
            ) from error
        return total - free

    def processes(self, key: str) -> Mapping[int, int] | None:
        try:
            listed = self._processes(self._handles[key])
        except NvmlError:
            return None
        told: dict[int, int] = {}
        for one in listed:
            if one.bytes == _UNKNOWN:
                return None
            told[one.pid] = told.get(one.pid, 0) + one.bytes
        return told

    def _found(self) -> tuple[tuple[Device, ...], dict[str, ctypes.c_void_p]]:
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        devices, handles = [], {}
        for index in range(count.value):
            handle = ctypes.c_void_p()
            device = self._device(index, handle)
            devices.append(device)
            handles[device.key] = handle
        if devices and all(device.trouble for device in devices):
            raise NvmlError(devices[0].trouble)
        return tuple(devices), handles

    def _device(self, index: int, handle: ctypes.c_void_p) -> Device:
        """Also of a card that is there and does not answer: the others keep their numbers."""
        key = name = ""
        try:
            self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
            key, name = self._text("nvmlDeviceGetUUID", handle), self._text("nvmlDeviceGetName", handle)
            return Device(key, name, self._memory(handle)[0], self._sliced(handle))
        except NvmlError as error:
            return Device(key, name, 0, trouble=str(error))

    def _sliced(self, handle: ctypes.c_void_p) -> bool:
        now, next_ = ctypes.c_uint(), ctypes.c_uint()
        try:
            self._call("nvmlDeviceGetMigMode", handle, ctypes.byref(now), ctypes.byref(next_))
        except NvmlError:
            return False  # neither this driver nor this card knows of such a mode
        return bool(now.value)

    def _memory(self, handle: ctypes.c_void_p) -> tuple[int, int]:
        """What programs can have in all, and what is free of it."""
        newer = _MemoryV2(version=ctypes.sizeof(_MemoryV2) | 2 << 24)
        try:
            self._call("nvmlDeviceGetMemoryInfo_v2", handle, ctypes.byref(newer))
        except NvmlError:
            memory = _Memory()
            self._call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
            return memory.total, memory.free
        return newer.total - newer.reserved, newer.free

    def _processes(self, handle: ctypes.c_void_p) -> list[_Process]:
        room = 64
        while True:
            count, listed = ctypes.c_uint(room), (_Process * room)()
            status = self._function("nvmlDeviceGetComputeRunningProcesses_v3")(handle, ctypes.byref(count), listed)
            if status == _TOO_SMALL:
                room = max(2 * room, count.value)
                continue
            if status:
                raise NvmlError(status)
            return list(listed[: count.value])

    def _text(self, function: str, handle: ctypes.c_void_p) -> str:
        text = ctypes.create_string_buffer(_TEXT)
        self._call(function, handle, text, ctypes.c_uint(_TEXT))
        return text.value.decode("utf-8", "replace")

    def _call(self, name: str, *arguments: Any) -> None:
        if status := self._function(name)(*arguments):
            raise NvmlError(f"{name}: error {status}")

    def _function(self, name: str) -> Any:
        try:
            return getattr(self._library, name)
        except AttributeError:
            raise NvmlError(f"this driver is too old for {name}") from None
