"""``memleak doctor``: what can be measured on this machine, with which fidelity, and what cannot and why."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

from pytest_memleak.cli.caps import caps
from pytest_memleak.cli.devices import accelerators
from pytest_memleak.cli.finding import Finding
from pytest_memleak.cli.host import host_memory
from pytest_memleak.cli.simulation import simulation
from pytest_memleak.cli.software import SOFTWARE, basics, companions, torch_here
from pytest_memleak.cli.upstream import upstream

SCHEMA = "pytest-memleak-doctor/1"


def run(chosen: argparse.Namespace) -> tuple[str, int]:
    """What to print, and the exit status."""
    findings = examine()
    return (as_json(findings) if chosen.json else as_text(findings)), exit_status(findings)


def examine() -> list[Finding]:
    torch, about_torch = torch_here()
    found = [*basics(), about_torch, *companions(), *upstream()]
    if torch is None:
        found.append(Finding("caps", "no", "any", "without a torch that can be used there is nothing to cap"))
    else:
        found += [*accelerators(torch), *caps(torch), *simulation(torch)]
    return [*found, *host_memory()]


def exit_status(findings: Sequence[Finding]) -> int:
    """0 when a cap can be enforced here, 1 when not: because nothing caps, or what the package needs is missing."""
    unfit = any(finding.group == SOFTWARE and finding.mark == "no" for finding in findings)
    return 0 if not unfit and any(finding.caps for finding in findings) else 1


def as_text(findings: Sequence[Finding]) -> str:
    marks = max(len(finding.mark) for finding in findings)
    names = max(len(finding.what) for finding in findings)
    lines: list[str] = []
    for group in dict.fromkeys(finding.group for finding in findings):
        lines.append(group)
        lines += [
            f"  {one.mark:<{marks}}  {one.what:<{names}}  {' '.join(one.detail.split())}"
            for one in findings
            if one.group == group
        ]
    where = ", ".join(finding.what for finding in findings if finding.caps)
    lines.append(
        "a cap cannot be enforced here" if exit_status(findings) else f"a cap can be enforced here, on: {where}"
    )
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> str:
    data = {
        "schema": SCHEMA,
        "cap_can_be_enforced": exit_status(findings) == 0,
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }
    return json.dumps(data, indent=1)
