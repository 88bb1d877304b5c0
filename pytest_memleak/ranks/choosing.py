"""What the ranks of a test run on, and how they talk to each other."""

from __future__ import annotations

from pytest_memleak.cards.probe import accelerator_seen
from pytest_memleak.cards.simulated.profiles import DEFAULT, several
from pytest_memleak.plan import Plan, Ranks
from pytest_memleak.ranks.group import GLOO, NCCL, PLAYED
from pytest_memleak.settings import SIMULATED, Settings

GPUS, CPUS = "GPUs", "CPUs"


def kind_of_card(settings: Settings, plan: Plan | None) -> str:
    """As a test in one process would have it: a real card if there is one; with a cap, and without one, a simulated."""
    if settings.backend in (SIMULATED, "cpu"):
        return SIMULATED if settings.backend == SIMULATED else CPUS
    if settings.backend == "real" or accelerator_seen():
        return GPUS
    return SIMULATED if plan is not None and plan.cap is not None else CPUS


def played_cards(settings: Settings, local_size: int) -> str:
    """What --gpu-backend is to say to the ranks of one machine: each has a card."""
    count, name = several(settings.cards)
    return f"{SIMULATED}:{max(count, local_size)}x{name or DEFAULT}"


def backend_of(ranks: Ranks, kind: str) -> str | None:
    if ranks.backend is False:
        return None
    if isinstance(ranks.backend, str):
        return ranks.backend
    return {GPUS: NCCL, CPUS: GLOO, SIMULATED: PLAYED}[kind]
