"""The table of truth.py: what a GPU took, what was predicted, and which rows miss the bar."""

from __future__ import annotations

from typing import Any

from truth_rows import ROWS

MIB = 2**20
PACKAGES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes")
# What each row is held to, in percent.
LOAD = {"requested_peak": 0.1, "allocated_peak": 0.1, "reserved_peak": 0.1, "allocated": 0.1, "reserved": 0.1}
WORK = {"allocated_peak": 0.5, "reserved_peak": 1.0, "allocated": 0.1}
SHOWN = {
    "requested_peak": "requested peak",
    "allocated_peak": "allocated peak",
    "reserved_peak": "reserved peak",
    "allocated": "allocated at the end",
    "reserved": "reserved at the end",
}


def compared(real: dict[str, Any], simulated: dict[str, Any]) -> tuple[str, int]:
    """The table, and how many rows miss."""
    lines = [
        *_about("GPU", real),
        *_about("Simulated", simulated),
        "",
        "MiB on the GPU, and the prediction's error in percent; 0 is to the byte.",
        "",
        "| row | outcome | " + " | ".join(SHOWN.values()) + " | seconds | host GiB | within the bar |",
        "|---|---|" + "---|" * (len(SHOWN) + 3),
    ]
    missed = 0
    for name in [name for name in ROWS if name in real["rows"] or name in simulated["rows"]]:
        ours, theirs = (record["rows"].get(name) for record in (simulated, real))
        if theirs is None or ours is None:
            lines.append(_row(name, [f"{'GPU' if theirs is None else 'simulated'}: not run", *_blank(), "–"]))
            continue
        misses = _misses(name, theirs, ours)
        missed += bool(misses)
        verdict = "yes" if not misses else "**no**: " + "; ".join(misses)
        if "failed" in (theirs["outcome"], ours["outcome"]):
            lines.append(_row(name, [_outcome(theirs, ours), *_blank(), verdict]))
            continue
        cells = [_cell(theirs[key], ours[key]) for key in SHOWN]
        seconds = f"{theirs['seconds']:.1f} / {ours['seconds']:.1f}"
        host = f"{theirs['host_anonymous_peak'] / 2**30:.2f} / {ours['host_anonymous_peak'] / 2**30:.2f}"
        lines.append(_row(name, [_outcome(theirs, ours), *cells, seconds, host, verdict]))
    lines += ["", "What the rows are:", "", *(f"- `{name}`: {row.note}" for name, row in ROWS.items())]
    return "\n".join(lines), missed


def _misses(name: str, real: dict[str, Any], simulated: dict[str, Any]) -> list[str]:
    if "failed" in (real["outcome"], simulated["outcome"]):
        return ["nothing to compare"]
    if real["outcome"] != simulated["outcome"]:
        return [f"{real['outcome']} on the GPU, {simulated['outcome']} simulated"]
    found = []
    if simulated.get("decided_by_unknown_values"):
        found.append("unknown values decided")
    if real["outcome"] != "fits":
        return found  # a card that is full says little but that it is full
    for key, most in (LOAD if ROWS[name].load else WORK).items():
        error = _error(real[key], simulated[key])
        if abs(error) > most:
            found.append(f"{SHOWN[key]} {error:+.2f} %")
    return found


def _error(real: int, simulated: int) -> float:
    return 100 * (simulated - real) / max(real, 1)


def _cell(real: int, simulated: int) -> str:
    off = "0" if real == simulated else f"{_error(real, simulated):+.3f} %"
    return f"{real / MIB:,.1f} ({off})"


def _outcome(real: dict[str, Any], simulated: dict[str, Any]) -> str:
    one, other = real["outcome"], simulated["outcome"]
    return one if one == other else f"{one} / {other}"


def _blank() -> list[str]:
    return ["–"] * (len(SHOWN) + 2)


def _row(name: str, cells: list[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def _about(words: str, record: dict[str, Any]) -> list[str]:
    """A line for each run that rows come from."""
    runs: dict[str, None] = {}
    for row in record["rows"].values():
        if machine := row.get("machine"):
            versions = ", ".join(f"{name} {machine[name]}" for name in PACKAGES)
            runs[f"- {words}: {machine['card']}, {versions}, {row['date'][:10]}, `{row['command']}`."] = None
    return list(runs)
