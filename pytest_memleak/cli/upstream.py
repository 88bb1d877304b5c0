"""The doctor's look at what is known of the installed libraries: which bugs they have that cost memory."""

from __future__ import annotations

from pytest_memleak import fixes
from pytest_memleak.cli.finding import Finding


def upstream() -> list[Finding]:
    """One for each fix. By their releases alone: nothing is imported."""
    found = []
    for name in fixes.names():
        fix = fixes.find(name)
        if not fix.installed:
            found.append(Finding("known bugs", "-", name, f"{', '.join(fix.affected)} is not installed"))
        elif fix.needed():
            told = f'{fix.why()}: {fix.mends}; pytest_memleak.fixes.apply("{name}") mends it'
            found.append(Finding("known bugs", "partly", name, told))
        else:
            found.append(Finding("known bugs", "yes", name, fix.why()))
    return found
