"""Records for pages of tests, one of them with the worst names that a test can have."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pytest_memleak.budget.term import Term
from pytest_memleak.records.collected import Collected
from pytest_memleak.records.record import AtPeak, Block, CardInfo, CheckResult, Limit, TestRecord, Timeline, Verdict
from pytest_memleak.records.run import RunInfo
from pytest_memleak.report import html
from pytest_memleak.wording import SNAPSHOT

MIB = 1 << 20
EVIL = "<script>window.ran=1</script></script><img src=x onerror='window.ran=2'><!--&lt;\u2028\"`${1}%{x}<b>b</b>\ud800"

RUN = RunInfo(
    started="2025-01-02T03:04:05+00:00",
    finished="2025-01-02T03:05:05+00:00",
    args=("-n", "2", EVIL),
    mode="enforce",
    backend="auto",
    exit_status=1,
    cap=4096 * MIB,
    versions={"python": "3.11", "torch": "2.13.0"},
)
CPU = CardInfo("cpu", "CPU", ("cpu",), 8192 * MIB)
SIMULATED = CardInfo("simulated", "NVIDIA H200", ("cuda:0",), 8192 * MIB, cap=4096 * MIB, enforcement="enforced")


def peak(
    verdict: Verdict, measured: int, limit: int, device: str = "cpu", how: str = "measured", said: str = ""
) -> CheckResult:
    return CheckResult(
        "max_peak",
        verdict,
        f"max_peak {verdict}: {said}",
        device,
        "allocated",
        how,
        measured,
        base=0,
        limit=Limit("fp16_size", limit, f"a.py:1 {said}@max_peak", (Term("fp16_size", limit, f"of Tiny{said}"),)),
        advice=f"less{said}" if verdict == "fail" else "",
    )


def timeline(device: str = "cpu", how: str = "sampled", top: int = 48 * MIB) -> Timeline:
    phases = (("setup", 0.0), ("call", 0.5), ("teardown", 1.5))
    return Timeline(device, "allocated", how, (0.0, 0.5, 1.0, 1.5, 2.0), (0, 512, top - 1024, 1024, 0), phases)


def evil() -> TestRecord:
    alive = (AtPeak(30 * MIB, 3, f"{EVIL}.py:7", f"{EVIL}.py:1", EVIL), AtPeak(10 * MIB, 1, "a backward pass", ""))
    lines = (
        "alive at the peak, by the line that allocated it (83 % of it):",
        f"      30 MiB in 3 blocks  {EVIL}",
        f"with 45 MiB allocated, {EVIL} was running; who held it then:",
        f"  30 MiB in 3 tensors (float32 [4]): local '{EVIL}' -> second -> third, kept by {EVIL}",
    )
    failed = peak("fail", 48 * MIB, 40 * MIB, said=EVIL)
    failed = CheckResult(**vars(failed) | {"at_peak": alive, "explanation": lines, "details": (EVIL,)})
    return TestRecord(
        f"tests/test_evil.py::test_evil[{EVIL}]",
        f"tests/{EVIL}.py",
        3,
        card=CardInfo("cpu", EVIL, ("cpu",), 8192 * MIB),
        results=(failed,),
        blocks=(Block(EVIL, "cpu", "allocated", "measured", 5, -2),),
        worker="gw1",
        notes=(EVIL, f'{SNAPSHOT}shots/<b> "#.pickle'),
        duration=2.0,
        timelines=(Timeline(**vars(timeline()) | {"phases": ((EVIL, 0.0), ("call", 1.0))}),),
    )


def collected() -> Collected:
    found = Collected()
    found.add(evil())
    leak = CheckResult(
        "max_leak",
        "fail",
        "max_leak FAILED: …",
        "cuda:0",
        "allocated",
        "predicted",
        4096,
        limit=Limit("0", 0, "ini"),
        details=("4 KiB in 1 tensor (float32 [1024]): module global kept.LOSSES[0]",),
    )
    found.add(TestRecord("tests/test_a.py::test_leaks", "tests/test_a.py", 1, SIMULATED, (leak,), worker="gw0"))
    for number, measured in enumerate((0, 1023, 1024, 5_606_784, 1_048_575 << 10, 123_456_789, 20 << 40)):
        passed = peak("pass", measured, max(1, 2 * measured), "cuda:0", "predicted")
        record = TestRecord(
            f"tests/test_b.py::test_passes[{number}]", "tests/test_b.py", 9, SIMULATED, (passed,), worker="gw1"
        )
        found.add(record)
    held = peak("pass", 41 * MIB, 40 * MIB * 2, "cuda:0", "predicted")
    found.add(
        TestRecord(
            "tests/test_c.py::test_with_a_curve",
            "tests/test_c.py",
            5,
            SIMULATED,
            (held,),
            worker="gw0",
            attempt=2,
            duration=2.0,
            timelines=(timeline("cuda:0", "predicted", 40 * MIB),),
        )
    )
    found.worker_fell_silent("gw7")
    return found


def written(folder: Path, records: Collected | None = None, run: RunInfo = RUN) -> Path:
    path = folder / "memleak.html"
    html.write(path, collected() if records is None else records, run, folder)
    return path


class Scripts(HTMLParser):
    """Every script element as a browser would find it: its id, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[dict[str, str | None], str]] = []
        self.elements: set[str] = set()
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        if tag == "script":
            self.found.append((dict(attrs), ""))
        if tag == "meta" and ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"] or ""

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            attributes, text = self.found.pop()
            self.found.append((attributes, text + data))

    def data(self) -> dict[str, Any]:
        return {
            str(found["id"]): json.loads(text) for found, text in self.found if found.get("type") == "application/json"
        }


def read(path: Path) -> Scripts:
    return Scripts(path.read_text(encoding="utf-8"))
