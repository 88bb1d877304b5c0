"""The lines at the top of a run. torch is not imported yet: they say what was asked for and what the machine shows."""

from __future__ import annotations

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.cards.probe import accelerator_seen
from pytest_memleak.settings import Settings


def header_lines(settings: Settings) -> list[str]:
    """Nothing for a run without any option: the plugin is silent until it is asked for something."""
    parts = []
    if settings.cap is not None and settings.cap_given is not None:
        parts.append(f"cap {format_size(settings.cap)} ({settings.cap_given.source}); {_whose(settings.backend)}")
    elif settings.backend_given is not None:
        parts.append(f"backend {settings.backend} ({settings.backend_given.source})")
    parts += [f"{name} {given.text} by default ({given.source})" for name, given in settings.defaults.items()]
    if settings.reporting:
        parts.append("report mode: every test is measured, none fails for its memory")
    return [f"memleak: {part}" for part in parts]


def _whose(backend: str) -> str:
    if backend == "cpu":
        return "the CPU is the card, with real values"
    if accelerator_seen():
        return "an accelerator is there: its allocator is capped"
    if backend == "real":
        return "no accelerator is seen here: tests that need the card will be errors"
    return "no accelerator is seen here: the CPU stands in for the card, with real values"
