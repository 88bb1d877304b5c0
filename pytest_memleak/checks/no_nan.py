"""`no_nan`: what was found in a test's models, gradients and losses in; a verdict out."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_memleak.plan import NoNan
from pytest_memleak.ranks.world import World
from pytest_memleak.records.record import CheckResult
from pytest_memleak.values.found import Bad, Scan
from pytest_memleak.values.looks import Look
from pytest_memleak.values.named import GRADIENT, LOSS, STATE
from pytest_memleak.wording import plural

CHECK = "no_nan"

NO_MODEL = (
    'no model was loaded or built here: name it with model="fixture:NAME", or call pytest_memleak.watch(model) or '
    "pytest_memleak.no_nan(model)"
)
ON_THE_CPU = "run the test where values are real: on a card, or on the CPU (--gpu-backend=cpu)"
_ADVICE = "look at who was to write these values and did not, or at the first step that makes them"
_MOST = 5
_MISSING = {
    GRADIENT: "gradients=True, and no gradient was there: neither in a step of an optimizer nor at the end",
    STATE: "an optimizer was given, and it has no state yet: look after its first step",
    LOSS: "losses were given, and there is none among them",
}
_AT_LEAST = 0.1
"""Percent; a smaller share is told by counts."""


def judge_no_nan(
    promise: NoNan | None,
    looks: Sequence[Look[Scan]],
    training: Scan | None = None,
    overflows: Sequence[str] = (),
    *,
    how: str,
    rank: World | None = None,
    blind: str = NO_MODEL,
    doubts: Sequence[str] = (),
    wanted: Sequence[str] = (),
) -> CheckResult:
    """`training`: what was found in gradients, optimizers and losses. `blind`: what to say without any look. `wanted`:
    kinds of tensors that somebody asked to look at, and that should be there."""
    scans = [*(look.found for look in looks if look.found is not None), *([training] if training else [])]
    # What happens in a step is the reason of what is left after it.
    bad = [("", one) for one in (training.bad if training else ())]
    bad += [(look.title, one) for look in looks if look.found is not None for one in look.found.bad]
    on = f" on {rank}" if rank is not None else ""
    asked = () if promise is None else (f"promised by {promise.source}",)
    if bad or overflows:
        several = len({title for title, _ in bad if title}) > 1
        lines = [*overflows, *(_line(one, title if several else "") for title, one in bad)]
        blamed = [look for look in looks if look.found is not None and look.found.bad]
        more = [f"and {plural(len(lines) - _MOST, 'more', 'more')}"] if len(lines) > _MOST else []
        return CheckResult(
            CHECK,
            "fail",
            f"{CHECK} FAILED: {_first(bad, overflows)}{on} ({how})",
            kind="values",
            how=how,
            details=(*lines[:_MOST], *more, *_places(blamed), *_unmaterialized(scans), *asked),
            advice=_ADVICE,
        )
    if promise is not None and promise.gradients:
        wanted = [*wanted, GRADIENT]
    if why := _blindness(promise, looks, scans, blind, doubts, wanted):
        unknown = any(scan.unknown for scan in scans)
        return CheckResult(
            CHECK,
            "inconclusive",
            f"{CHECK} INCONCLUSIVE: {why}{on}",
            kind="values",
            details=asked,
            advice=ON_THE_CPU if unknown else "",
        )
    count = sum(scan.looked.total() for scan in scans)
    unmaterialized = sum(len(scan.unmaterialized) for scan in scans)
    left = f", {unmaterialized} more without values (unmaterialized)" if unmaterialized else ""
    return CheckResult(
        CHECK,
        "pass",
        f"{CHECK} passed: no NaN in {plural(count, 'tensor')}{left}{on} ({how})",
        kind="values",
        how=how,
        details=(f"looked at {_kinds(scans)}", *_places(looks), *_unmaterialized(scans), *asked),
    )


def _first(bad: Sequence[tuple[str, Bad]], overflows: Sequence[str]) -> str:
    first = overflows[0].partition(":")[0] if overflows else f"{bad[0][1].name}: {_share(bad[0][1])}"
    others = len(bad) + len(overflows) - 1
    return f"{first}, and {plural(others, 'more is', 'more are')} as bad" if others else first


def _line(one: Bad, title: str) -> str:
    what = f"{one.name} ({one.kind}, {one.dtype} {list(one.shape)} on {one.device}{', its shard' if one.shard else ''})"
    place = ""
    if one.place is not None:
        place = f"; allocated at {one.place.line}{f' (from {one.place.by})' if one.place.by else ''}"
    return f"{f'{title}: ' if title else ''}{what}: {_share(one)}{place}"


def _share(one: Bad) -> str:
    """``12.5 % of 1,048,576 values are NaN, the first at [0, 17]``."""
    shares = [
        _part(count, one.count, word) for count, word in ((one.nans, "NaN"), (one.infinities, "infinite")) if count
    ]
    where = f", the first at {list(one.first)}" if one.first else ""
    return f"{' and '.join(shares)}{where}"


def _part(count: int, of: int, word: str) -> str:
    percent = 100 * count / of
    text = f"{percent:.3g}"
    if of == 1:
        return f"its one value is {word}"
    if percent < _AT_LEAST or (text == "100" and count < of):
        return f"{count:,} of {of:,} values {'is' if count == 1 else 'are'} {word}"
    return f"{text} % of {of:,} values are {word}"


def _blindness(
    promise: NoNan | None,
    looks: Sequence[Look[Scan]],
    scans: Sequence[Scan],
    blind: str,
    doubts: Sequence[str],
    wanted: Sequence[str],
) -> str:
    if not looks and promise is not None:
        return blind
    if failed := [look for look in looks if look.failed]:
        return f"{failed[0].title} could not be looked into: {failed[0].failed}"
    for names, why in (
        ([name for scan in scans for name in scan.unknown], "a simulation knows sizes, and not these values"),
        ([name for scan in scans for name in scan.unreadable], "its layout cannot be looked into"),
    ):
        if names:
            return f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {why}"
    if doubts:
        return "; ".join(doubts)
    if missing := next((kind for kind in wanted if not any(scan.looked[kind] for scan in scans)), None):
        return _MISSING[missing]
    if not any(scan.looked.total() for scan in scans):
        unmaterialized = sum(len(scan.unmaterialized) for scan in scans)
        return f"all {unmaterialized} tensors are unmaterialized (on meta)" if unmaterialized else "there is no tensor"
    return ""


def _places(looks: Sequence[Look[Scan]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"in {look.title}, {look.when}" for look in looks if look.when))


def _unmaterialized(scans: Sequence[Scan]) -> tuple[str, ...]:
    names = [name for scan in scans for name in scan.unmaterialized]
    if not names:
        return ()
    shown = ", ".join(names[:3]) + (", …" if names[3:] else "")
    return (f"{plural(len(names), 'tensor is', 'tensors are')} unmaterialized (on meta), and not looked at: {shown}",)


def _kinds(scans: Sequence[Scan]) -> str:
    counts: dict[str, int] = {}
    for scan in scans:
        for kind, count in scan.looked.items():
            counts[kind] = counts.get(kind, 0) + count
    return ", ".join(plural(count, kind, _MANY.get(kind, f"{kind}s")) for kind, count in counts.items())


_MANY = {LOSS: "losses", STATE: "tensors of optimizers", "quantization state": "tensors of quantization states"}
