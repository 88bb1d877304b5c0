"""What `memleak predict` answers, as data and as a table."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.cards.simulated.profiles import PROFILES
from pytest_memleak.cli import plan_words
from pytest_memleak.cli.plan import Planned
from pytest_memleak.cli.program import Run
from pytest_memleak.ledger.at_peak import lines_of
from pytest_memleak.prediction import Prediction, in_short

SCHEMA = "pytest-memleak-predict/1"
_PACKAGES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Answer:
    """One run on one card."""

    prediction: Prediction
    weights: int
    parameters: int
    stage: str
    """Where the peak stands, or where the card was full."""


def data_of(
    run: Run, config: Path, answer: Answer, needs: Answer, smallest: Answer | None, planned: Planned | None
) -> dict[str, Any]:
    """`answer`: on the card that was asked for; `needs`: where it fits; `planned`: None if nothing is trained."""
    prediction, full = answer.prediction, needs.prediction
    return {
        "schema": SCHEMA,
        "how": "predicted",
        "config": str(config),
        "model": run.architecture,
        "parameters": needs.parameters,
        "run": run.in_words(),
        "card": {"name": prediction.card.name, "total": prediction.card.total},
        "fits": prediction.fits,
        "doubt": prediction.doubt or full.doubt,
        "refusal": prediction.refusal,
        "refused_in": "" if prediction.fits else answer.stage,
        "weights": needs.weights,
        "requested_peak": full.requested_peak,
        "allocated_peak": full.allocated_peak,
        "reserved_peak": full.reserved_peak,
        "allocated": full.allocated,
        "reserved": full.reserved,
        "host_peak": full.host_peak,
        "margin": full.margin,
        "peak_in": needs.stage,
        "presumed": list(full.presumed),
        "at_peak": [dataclasses.asdict(one) for one in full.at_peak],
        "smallest_card": smallest and {"name": smallest.prediction.card.name, "total": smallest.prediction.card.total},
        **(plan_words.data_of(planned, _fits_without(run, answer)) if planned else plan_words.NOTHING),
        "versions": {name: metadata.version(name) for name in _PACKAGES if find_spec(name)},
    }


def text_of(data: dict[str, Any], run: Run, answer: Answer, needs: Answer, planned: Planned | None) -> str:
    card, smallest = data["card"], data["smallest_card"]
    verdict = "fits" if data["fits"] else f"does not fit: in the {data['refused_in']}, {in_short(data['refusal'])}"
    if data["doubt"]:
        verdict = f"INCONCLUSIVE: {data['doubt']}"
    rows = {
        "model": f"{data['model']}, {data['parameters'] / 1e9:.3g} billion parameters",
        "run": data["run"],
        "card": f"{card['name']}, {format_size(card['total'])}",
        "weights": f"{format_size(data['weights'])} (predicted)",
        "peak": f"{format_size(data['allocated_peak'])} allocated, {format_size(data['reserved_peak'])} reserved "
        "(predicted)",
        "stands in": f"{data['peak_in']} (predicted)",
        "verdict": f"{verdict} (predicted)",
        "smallest card": f"{smallest['name']}, {format_size(smallest['total'])} (predicted)"
        if smallest
        else f"none of {', '.join(PROFILES)} (predicted)",
    }
    if data["presumed"]:
        rows["presumed"] = "; ".join(data["presumed"])
    if planned:
        rows |= plan_words.rows_of(planned, _fits_without(run, answer))
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {text}" for name, text in rows.items()]
    alive = [f"  {line}" for line in lines_of(needs.prediction.at_peak)]
    return "\n".join([*lines, "alive at the peak (predicted):", *alive])


def _fits_without(run: Run, answer: Answer) -> bool:
    """Whether it was seen to fit with all kept on the card that a plan could do without."""
    return answer.prediction.fits and answer.prediction.doubt is None and not run.checkpointed
