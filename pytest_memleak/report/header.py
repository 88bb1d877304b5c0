"""The lines at the top of a run. torch is not imported yet: they say what was asked for and what the machine shows."""

from __future__ import annotations

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.cards.probe import accelerator_seen
from pytest_memleak.cards.simulated.profiles import cards_of
from pytest_memleak.settings import SIMULATED, Settings


def header_lines(settings: Settings) -> list[str]:
    """Nothing for a run without any option: the plugin is silent until it is asked for something."""
    parts = []
    if settings.cap is not None and settings.cap_given is not None:
        parts.append(f"cap {format_size(settings.cap)} ({settings.cap_given.source}); {_whose(settings)}")
    elif settings.backend == SIMULATED:
        parts.append(_whose(settings))
    elif settings.backend_given is not None:
        parts.append(f"backend {settings.backend} ({settings.backend_given.source})")
    parts += [f"{name} {given.text} by default ({given.source})" for name, given in settings.defaults.items()]
    if settings.reporting:
        parts.append("report mode: every test is measured, none fails for its memory")
    if settings.baseline is not None:
        update = f", updating: {', '.join(sorted(settings.baseline.update))}" if settings.baseline.update else ""
        parts.append(f"baseline {settings.baseline.shown} ({settings.baseline.source}){update}")
    return [f"memleak: {part}" for part in parts]


def _whose(settings: Settings) -> str:
    backend = settings.backend
    if backend == SIMULATED:
        cards = cards_of(settings.cards)
        many = f"{len(cards)} × " if len(cards) > 1 else ""
        return f"simulated card: {many}{cards[0].name}, {format_size(cards[0].total)}; all its numbers are predicted"
    if backend == "cpu":
        return "the CPU is the card, with real values"
    if accelerator_seen():
        return "an accelerator is there: its allocator is capped"
    if backend == "real":
        return "no accelerator is seen here: tests that need the card will be errors"
    return "no accelerator is seen here: the card is simulated, and its numbers are predicted"
