"""The doctor's trial of the simulated card: whether it can be had here, and what can be simulated."""

from __future__ import annotations

from types import ModuleType

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.cards.simulated.profiles import DEFAULT, PROFILES, cards_of
from pytest_memleak.cli.finding import Finding, first_line
from pytest_memleak.errors import MemleakError

_GROUP = "simulation"
_CAP = 32 * 1024**2
_TOO_MUCH = f"{format_size(2 * _CAP)} past a cap of {format_size(_CAP)}"


def simulation(torch: ModuleType) -> list[Finding]:
    if torch.accelerator.is_available():
        return [Finding(_GROUP, "-", "card", "not beside a real one: hide that to predict what another card would do")]
    profiles = ", ".join(f"{name} ({format_size(card.total)})" for name, card in PROFILES.items())
    return [_card(torch), Finding(_GROUP, "-", "profiles", f"{profiles}; {DEFAULT} unless one is named")]


def _card(torch: ModuleType) -> Finding:
    try:
        refused = _refuses(torch)
    except MemleakError as reason:
        return Finding(_GROUP, "no", "card", first_line(reason))
    if not refused:
        return Finding(_GROUP, "no", "card", f"tried: its allocator gave {_TOO_MUCH}")
    told = "tried: a cap is enforced on what its allocator would reserve; every number is a prediction"
    return Finding(_GROUP, "yes", "simulated card", told, caps=True)


def _refuses(torch: ModuleType) -> bool:
    from pytest_memleak.cards.simulated.process import simulation_of

    made = simulation_of(cards_of(""))
    made.on()
    try:
        torch.cuda.set_per_process_memory_fraction(_CAP / made.cards[0].total)
        torch.empty(2 * _CAP, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        return True
    finally:
        made.off()
        made.allocator(0).cap = None
    return False
