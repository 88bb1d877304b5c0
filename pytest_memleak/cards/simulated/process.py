"""The one simulation of this process: made when it is first wanted, on for as long as somebody needs the card.

Tensors outlive the tests that the card was there for, so there is one for the whole process, and it stays what it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pytest_memleak.cards.simulated import library
from pytest_memleak.cards.simulated.profiles import Profile, cards_of
from pytest_memleak.cards.simulated.simulation import Simulation
from pytest_memleak.cards.simulated.trial import Differs, try_out
from pytest_memleak.errors import MemleakError, Unavailable

_made: list[Simulation] = []
_refused: list[str] = []


def in_force() -> Simulation | None:
    """The simulation that is on: then what torch says of accelerators is about this one."""
    return next((simulation for simulation in _made if simulation.is_on), None)


def this_process_s() -> Simulation:
    """The one that is there, whatever its cards, or one of the default card: for those who bring cards of their own."""
    return _made[0] if _made else simulation_of(cards_of(""))


def simulation_of(cards: Sequence[Profile]) -> Simulation:
    """Made if need be, which leaves it off; `Unavailable` says why this process cannot have it."""
    if not _made:
        if _refused:
            raise Unavailable(_refused[0])
        try:
            _made.append(_make(cards))
        except Unavailable as reason:
            _refused.append(str(reason))  # it would be no different the next time, and takes as long
            raise
    names, wanted = [card.name for card in _made[0].cards], [card.name for card in cards]
    if names != wanted:
        raise Unavailable(
            f"this process has simulated {', '.join(names)} before, and cannot change to {', '.join(wanted)}: "
            "run them one after the other, each in its own process"
        )
    return _made[0]


def _make(cards: Sequence[Profile]) -> Simulation:
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        raise Unavailable(
            f"this machine has an accelerator ({kind}), and torch takes no simulated card beside it: use "
            "--gpu-backend=auto or real, or hide the card (CUDA_VISIBLE_DEVICES= for one of NVIDIA)"
        )
    if torch.version.hip:
        raise Unavailable(
            f"torch {torch.__version__} is built for ROCm, and the simulated card is one of CUDA: install torch's CPU "
            "build"
        )
    try:
        made = Simulation(cards)
        _begin(made)
    except MemleakError:
        raise
    except Exception as error:  # torch's private parts are what it stands on: any error here means that they changed
        said = next(iter(str(error).splitlines()), "")
        raise Unavailable(
            f"torch {torch.__version__} does not take the simulated card, which is known to fit torch "
            f"{library.CHECKED_ON}: {said if isinstance(error, Differs) else f'{type(error).__name__}: {said}'}"
        ) from error
    return made


def _begin(made: Simulation) -> None:
    """On for a moment: what is made once for the whole process is there before anybody counts: it is no test's leak."""
    made.on()
    try:
        try_out(made)
        made.unused()
    finally:
        made.off()
