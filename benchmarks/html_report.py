"""How large the page of a run of 1000 tests is, and how long a browser takes to show it.

    python benchmarks/html_report.py --out benchmarks/results/2026-11-28-html-report.md

Each test has memory over time in 512 points, what was alive at its peak, and every fifth an explanation as of a broken
promise; every fourth has a second curve. The browser is a Chromium from PATH, driven by playwright, its profile new.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.budget.term import Term
from pytest_memleak.ledger.at_peak import lines_of
from pytest_memleak.records.collected import Collected
from pytest_memleak.records.record import AtPeak, CardInfo, CheckResult, Limit, TestRecord, Timeline
from pytest_memleak.records.run import RunInfo, versions
from pytest_memleak.report import html
from pytest_memleak.wording import peak_message

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Steps = dict[str, list[tuple[float, float]]]

MIB = 1 << 20
CARD = CardInfo("simulated", "NVIDIA H200", ("cuda:0",), 143_771 * MIB, 4096 * MIB, "enforced on reserved memory")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def curve(dice: random.Random, device: str, kind: str, points: int) -> Timeline:
    """A load that rises in steps, and a sawtooth of forward and backward passes."""
    length = dice.uniform(0.5, 90)
    seconds = sorted(dice.uniform(0, length) for _ in range(points))
    weights = dice.randrange(200, 2000)
    levels = [
        min(1.0, 4 * at / points) * weights + 300 * abs(math.sin(at / 9)) * (at > points / 4) + dice.random()
        for at in range(points)
    ]
    phases = (("setup", 0.0), ("call", length / 5), ("teardown", 0.97 * length))
    return Timeline(device, kind, "sampled", tuple(seconds), tuple(512 * int(2048 * level) for level in levels), phases)


def groups(dice: random.Random) -> tuple[AtPeak, ...]:
    found = [
        AtPeak(
            512 * dice.randrange(2000, 200_000),
            dice.randrange(1, 60),
            f"transformers/models/model_{dice.randrange(12)}/modeling.py:{12 * dice.randrange(60)}",
            f"tests/test_models.py:{dice.randrange(10, 400)}",
            f"bfloat16 [{dice.randrange(1, 9)}, {64 * dice.randrange(1, 33)}]",
        )
        for _ in range(dice.randrange(10, 90))
    ]
    return tuple(sorted(found, reverse=True))


def record(dice: random.Random, number: int, points: int) -> TestRecord:
    timelines = [curve(dice, "cuda:0", "allocated", points)]
    if number % 4 == 0:
        timelines.append(curve(dice, "host", "committed", points))
    peak, alive, fails = max(timelines[0].bytes) + 512, groups(dice), number % 5 == 0
    limit = int(peak * (0.8 if fails else dice.uniform(1.05, 2.5)))
    owners = [
        f"  {dice.randrange(2, 90)} MiB in 3 tensors (bfloat16 [4, 4096]): local 'outputs[{one}].hidden_states[0]' of "
        f"running frame predict (tests/test_models.py:{one + 20}), kept by generation.CACHE.layers[0].keys"
        for one in range(5)
    ]
    head = "alive at the peak, by the line that allocated it (91 % of it):"
    looked = f"with {format_size(peak)} allocated, tests/test_models.py:9 had asked for 8 MiB; who held it then:"
    verdict = "fail" if fails else "pass"
    result = CheckResult(
        "max_peak",
        verdict,
        peak_message(verdict, measured=peak, limit=limit, kind="allocated", device="cuda:0", how="predicted"),
        "cuda:0",
        "allocated",
        "predicted",
        peak,
        base=0,
        limit=Limit(
            "0.6 * fp16_size + 200MiB",
            limit,
            f"tests/test_models.py:{number} @max_peak",
            (Term("fp16_size", limit, f"{limit // 2:,} parameters × 2 B of LlamaForCausalLM"),),
        ),
        details=("highest in the set-up of its fixtures: 1.143 MiB, in the body: 1.2 GiB",),
        at_peak=alive,
        explanation=(head, *(f"  {line}" for line in lines_of(alive)), looked, *owners) if fails else (),
        advice="find what was alive at the peak and release it earlier" if fails else "",
    )
    name = f"tests/test_models_{number % 20}.py::TestModel::test_generates[model-{number}-bfloat16]"
    return TestRecord(
        name,
        f"tests/test_models_{number % 20}.py",
        number,
        CARD,
        (result,),
        worker=f"gw{number % 4}",
        duration=timelines[0].seconds[-1],
        timelines=tuple(timelines),
    )


def write(path: Path, tests: int, points: int) -> float:
    dice, collected = random.Random(7), Collected()
    for number in range(tests):
        collected.add(record(dice, number, points))
    now = "2026-11-28T12:00:00+00:00"
    run = RunInfo(now, now, ("--gpu-cap=4G", "-n", "4"), "enforce", "simulated", 1, 4096 * MIB, versions())
    began = time.perf_counter()
    html.write(path, collected, run, path.parent)
    return time.perf_counter() - began


SHOWN = """() => new Promise((resolve) => {
    const seen = () => document.querySelectorAll("tr.test").length && document.readyState === "complete";
    const look = () => seen() ? requestAnimationFrame(() => resolve(performance.now())) : setTimeout(look, 2);
    look();
})"""
CLICK = """(number) => new Promise((resolve) => {
    const began = performance.now();
    document.querySelectorAll("tr.test button")[number].click();
    const done = () => {
        const places = [...document.querySelectorAll("tr.opened .chart")];
        return places.length > 1 && places.every((place) => place.querySelector("svg .trace"));
    };
    const look = () => done() ? requestAnimationFrame(() => resolve(performance.now() - began)) : setTimeout(look, 2);
    look();
})"""
SORT = """() => {
    const began = performance.now();
    document.querySelector("th.number button").click();
    document.body.getBoundingClientRect();
    return performance.now() - began;
}"""


STEPS = (
    ("from navigation to the table drawn", SHOWN, None),
    ("from a click at once to both charts drawn", CLICK, 0),
    ("from another click to both charts drawn", CLICK, 5),
    ("to sort by a column", SORT, None),
)


class Watched:
    """A page, and what its own thread does."""

    def __init__(self, browser: Browser, path: Path, until: str) -> None:
        self.page = browser.new_page()
        self._session = self.page.context.new_cdp_session(self.page)
        self._session.send("Performance.enable", {"timeDomain": "threadTicks"})
        self.page.goto(path.as_uri(), wait_until=until)

    def timed(self, script: str, argument: object = None) -> tuple[float, float]:
        """Milliseconds by the clock, as the page reads it, and of the processor for the page's thread."""
        before = self._busy()
        clock = self.page.evaluate(script, argument)
        return clock, 1000 * (self._busy() - before)

    def _busy(self) -> float:
        metrics = self._session.send("Performance.getMetrics")["metrics"]
        return next(one["value"] for one in metrics if one["name"] == "TaskDuration")


def in_browser(path: Path, rounds: int) -> tuple[str, Steps]:
    """Each step, over fresh browsers."""
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        sys.exit("no Chromium on PATH: apt-get install chromium")
    steps: Steps = {}
    with sync_playwright() as playwright:
        for _ in range(rounds):
            browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
            version = browser.version
            page = Watched(browser, path, "commit")
            for step, script, argument in STEPS:
                steps.setdefault(step, []).append(page.timed(script, argument))
            later = Watched(browser, path, "load")
            later.page.wait_for_timeout(3000)
            steps.setdefault("from a first click after 3 s to both charts drawn", []).append(later.timed(CLICK, 0))
            browser.close()
    return version, steps


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--tests", type=int, default=1000)
    arguments.add_argument("--points", type=int, default=512)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "memleak.html")
        seconds = write(path, given.tests, given.points)
        size = path.stat().st_size
        browser, steps = in_browser(path, given.rounds)
    load = f"{len(os.sched_getaffinity(0))} processors, load {os.getloadavg()[0]:.1f} at the end"
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("plotly", "playwright"))
    lines = [
        f"# A page of {given.tests:,} tests",
        "",
        f"`python benchmarks/html_report.py{f' --out {given.out}' if given.out else ''}`: Python "
        f"{platform.python_version()}, {packages}, Chromium {browser}, headless; {load}.",
        "",
        f"{given.tests:,} records, each with {given.points} points of memory over time (every fourth: twice), 10 to 90 "
        "lines of what was alive, every fifth with an explanation. Browser: median and worst of "
        f"{given.rounds} starts, each with an empty profile.",
        "",
        f"The file has {size / 1e6:.1f} MB. To write it took {seconds:.2f} s.",
        "",
        "| | median | worst | processor time of the page's thread, median |",
        "|---|---|---|---|",
        *(
            f"| {step} | {statistics.median(clock):.0f} ms | {max(clock):.0f} ms | {statistics.median(busy):.0f} ms |"
            for step, (clock, busy) in ((step, tuple(zip(*found, strict=True))) for step, found in steps.items())
        ),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
