"""How numbers, verdicts and cards are put into words: in one place, so that checks and reports speak alike."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

from pytest_memleak.budget.sizes import UNITS, format_size
from pytest_memleak.records.record import AtPeak, CardInfo, Verdict

_LIMIT_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

VERDICT_WORDS: dict[Verdict, str] = {
    "pass": "passed",
    "fail": "FAILED",
    "inconclusive": "INCONCLUSIVE",
    "not judged": "not judged",
}


LET_GO = "values that nobody knows became ordinary numbers"
"""How the note begins that a test gets on the simulated card, where its branches are not followed any more."""

SNAPSHOT_NOTES = "memory snapshot "
SNAPSHOT = f"{SNAPSHOT_NOTES}for https://pytorch.org/memory_viz: "
"""How the note begins that tells where torch's own snapshot of a test was saved; its path follows."""

size = format_size  # the short name reads better inside messages


def looks_like(one: AtPeak) -> str:
    """The largest tensor of what a line allocated: ``bfloat16 [4096, 4096]: model.layers.0.up_proj.weight``."""
    return f"{one.example}: {one.parameter}" if one.example and one.parameter else one.example


def exact(count: int) -> str:
    """Bytes to the last one: ``2,200,100,864 B``."""
    return f"{count:,} B"


def compared(left: int, right: int) -> tuple[str, str]:
    """Two sizes to be compared by eye: never alike unless they are equal."""
    texts = format_size(left), format_size(right)
    return (exact(left), exact(right)) if left != right and texts[0] == texts[1] else texts


def readable_above(count: int) -> str:
    """The next size with two figures that is not below, as one writes it in a limit: ``1.3GiB``, ``340MiB``."""
    unit = next((unit for unit in _LIMIT_UNITS if count < 1000 * UNITS[unit]), _LIMIT_UNITS[-1])
    steps = 1 if unit == "B" else 10  # bytes have no fractions
    tenths = math.ceil(Fraction(count * steps, UNITS[unit]))
    digits = 10 ** max(len(str(tenths)) - 2, 0)
    return f"{math.ceil(Fraction(tenths, digits)) * digits / steps:.15g}{unit}"


def shortened(text: str, width: int) -> str:
    """Fits a text into a width by leaving out its middle; more is kept of the end, where a test's name stands."""
    if len(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    head = (width - 1) // 3
    return text[:head] + "…" + text[len(text) - (width - 1 - head) :]


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def place(device: str, rank: int | None) -> str:
    """Of one of a test's ranks, or of its only process."""
    return device if rank is None or not device else f"{device} of rank {rank}"


def peak_message(
    verdict: Verdict,
    *,
    measured: int,
    limit: int | None,
    kind: str,
    device: str,
    how: str,
    why: str = "",
    check: str = "max_peak",
) -> str:
    """First line of ``max_peak``, or of a block. `why` tells what made it inconclusive or kept it from being judged."""
    return _message(check, verdict, "peak", measured, limit, f"{kind} on {device}, {how}", why)


def host_peak_message(verdict: Verdict, *, measured: int, limit: int | None, kind: str, how: str, why: str = "") -> str:
    """First line of ``max_host_peak``, which is about growth since the test began."""
    return _message("max_host_peak", verdict, "host peak grew by", measured, limit, f"{kind} host memory, {how}", why)


def leak_message(
    verdict: Verdict,
    *,
    measured: int,
    limit: int | None,
    kind: str,
    device: str,
    how: str,
    per_run: bool = False,
    why: str = "",
) -> str:
    """First line of ``max_leak``; `per_run` where the growth of one repetition is judged."""
    what = "growth per run" if per_run else "still held after the test"
    return _message("max_leak", verdict, what, measured, limit, f"{kind} on {device}, {how}", why)


def baseline_message(
    what: Verdict | Literal["to be raised"],
    *,
    measured: int,
    recorded: int,
    higher: bool,
    tolerance: str,
    where: str,
    why: str = "",
) -> str:
    """First line of ``baseline``: both numbers, and how far they are apart."""
    left, right = compared(measured, recorded)
    numbers = f"peak {left} {'>' if higher else 'against'} recorded {right}"
    if higher:
        numbers += f": {change(measured, recorded)}, tolerance {tolerance}"
    elif measured != recorded:
        numbers += f": {change(measured, recorded)}"
    words = "to be raised" if what == "to be raised" else VERDICT_WORDS[what]
    return f"baseline {words}: {f'{why}; read: ' if why else ''}{numbers} ({where})"


def change(measured: int, recorded: int) -> str:
    """``+100 MiB (+50 %)``; without a share where there was nothing."""
    difference = measured - recorded
    sign = "+" if difference > 0 else "-" if difference else "±"
    share = f" ({difference / recorded:+.1%})".replace("%", " %") if recorded and difference else ""
    return f"{sign}{format_size(abs(difference))}{share}"


def sum_line(check: str, measured: int, base: int) -> str:
    """``base 0.5 GiB + test 1.647 GiB = peak 2.147 GiB``: what was there before, and what the test added."""
    # A host peak is judged on growth, so the base is not in its number; a card's peak is absolute.
    test, peak = (measured, base + measured) if check == "max_host_peak" else (measured - base, measured)
    number, unit = format_size(peak).split()
    decimals = 0 if unit == "B" else len(number.partition(".")[2]) or 3
    shown_base = round(base / UNITS[unit], decimals)
    # The test's part is what is missing between the two figures shown, so that the line adds up for whoever checks it.
    shown_test = round(float(number) - shown_base, decimals)
    if (base and not shown_base) or (test and not shown_test):
        return f"base {format_size(base)} + test {format_size(test)} = peak {number} {unit}"
    return f"base {shown_base:.15g} {unit} + test {shown_test:.15g} {unit} = peak {number} {unit}"


def card_line(card: CardInfo) -> str:
    """One card in one line, for the header and the summary."""
    predicted = "; its numbers are predicted" if card.backend == "simulated" else ""
    if card.cap is None:
        return f"{_card_name(card)}, no cap{predicted}"
    if card.backend == "cpu":
        instead = f" (no simulated card: {card.instead})" if card.instead else ""
        words = f"the CPU stands in for a {format_size(card.cap)} card{instead}"
        return f"{words}: values are real, the cap is {card.enforcement}"
    return f"{_card_name(card)}, capped at {format_size(card.cap)} ({card.enforcement}){predicted}"


def _card_name(card: CardInfo) -> str:
    devices = ", ".join(card.devices)
    name = card.name if devices.lower() in ("", card.name.lower()) else f"{card.name} ({devices})"
    simulated = "simulated " if card.backend == "simulated" else ""
    return f"{simulated}{name}, {format_size(card.total)}"


def _message(
    check: str,
    verdict: Verdict,
    what: str,
    measured: int,
    limit: int | None,
    where: str,
    why: str,
) -> str:
    if limit is None:
        return f"{check}: {what} {format_size(measured)}, no limit ({where}){f': {why}' if why else ''}"
    left, right = compared(measured, limit)
    # The sign follows the numbers: an inconclusive reading below its limit is shown as just that.
    numbers = f"{what} {left} {'>' if measured > limit else '≤'} limit {right} ({where})"
    if verdict in ("inconclusive", "not judged") and why:
        return f"{check} {VERDICT_WORDS[verdict]}: {why}; read: {numbers}"
    return f"{check} {VERDICT_WORDS[verdict]}: {numbers}{f'; {why}' if why else ''}"
