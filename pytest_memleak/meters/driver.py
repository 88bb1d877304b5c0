"""What the card itself has lost, to every process, contexts and libraries included. Its driver keeps no peak."""

from __future__ import annotations

import threading

import torch

from pytest_memleak.meters.gauge import PlainGauge
from pytest_memleak.meters.reading import Levels

_INTERVAL = 0.005


class DriverMemory(PlainGauge):
    """The gauge of one CUDA device as its driver sees it."""

    kinds: tuple[str, ...] = ("driver",)
    how = "sampled every 5 ms, all processes on the card"

    def __init__(self, index: int) -> None:
        self.device = f"cuda:{index}"
        self._index = index
        # Taken before any cap is told: a capped card answers for the cap, not for the driver.
        self._ask = torch.cuda.cudart().cudaMemGetInfo
        self._peak = 0
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None

    def now(self) -> Levels:
        free, total = self._ask(self._index)
        return {"driver": total - free}

    def take_peaks(self) -> Levels:
        now = self.now()["driver"]
        peak, self._peak = max(self._peak, now), now
        return {"driver": peak}

    def refusals(self) -> int:
        return 0

    def begin(self) -> None:
        self._stop.clear()
        self._sampler = threading.Thread(target=self._sample, name="memleak-driver", daemon=True)
        self._sampler.start()

    def end(self) -> None:
        self._stop.set()
        if self._sampler is not None:
            self._sampler.join()

    def _sample(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self._peak = max(self._peak, self.now()["driver"])
