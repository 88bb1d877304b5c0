"""`allocator_warmup`: what a test's warm-ups asked for, and what there was, in; a verdict for each device out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.plan import Warmed
from pytest_memleak.records.record import CheckResult, Limit, Verdict
from pytest_memleak.upstream.warmup import Ask, Load, Warmup
from pytest_memleak.wording import VERDICT_WORDS, compared, plural, size

CHECK = "allocator_warmup"

_ADVICE = (
    "leave out a warm-up that does not fit: the reference fix does so, "
    '@pytest.mark.memleak_fix("warmup_guard") or pytest_memleak.fixes.apply("warmup_guard")'
)
_REST = re.compile(r"(?<=B\.) .*")
"""Of torch's out-of-memory what follows the size that was asked for: all of it is said above in other words."""


def judge_warmup(
    promise: Warmed,
    loads: Sequence[Load],
    *,
    how: str,
    blind: str = "",
    elsewhere: int = 0,
    doubts: Sequence[str] = (),
) -> list[CheckResult]:
    """`blind`: why nothing could be seen. `elsewhere`: loads that were not the test's own."""
    if blind:
        return [_inconclusive(promise, blind)]
    if not any(load.reached or load.warmups for load in loads):
        return [_inconclusive(promise, _no_load(loads, elsewhere))]
    asked = [(ask, warmup, load) for load in loads for warmup in load.warmups for ask in warmup.asks if ask.bytes]
    devices = list(dict.fromkeys(ask.device for ask, _, _ in asked))
    results = [
        _judge_device(promise, min((one for one in asked if one[0].device == device), key=_kindness), how)
        for device in devices
    ] or [_nothing_asked(promise, loads, how)]
    if doubts:
        # What was not seen may have asked for anything; what was seen to break is broken.
        results = [one if one.verdict == "fail" else _inconclusive(promise, "; ".join(doubts)) for one in results]
    return results


def was_at_fault(loads: Sequence[Load]) -> bool:
    """Whether a warm-up's own request was answered with an error."""
    return any(ask.failed for load in loads for warmup in load.warmups for ask in warmup.asks)


def _kindness(one: tuple[Ask, Warmup, Load]) -> tuple[bool, int]:
    """Of several requests the one that shows most: what failed, then what left the least room."""
    ask, _, _ = one
    return ask.fits is not False, (ask.room.bytes if ask.room else 0) - ask.bytes


def _judge_device(promise: Warmed, one: tuple[Ask, Warmup, Load], how: str) -> CheckResult:
    ask, warmup, load = one
    limit, fitting = None, ask.fits
    if promise.expected == "skipped":
        verdict: Verdict = "fail"
        words = f"warm-up asked {_asked(ask)} of {ask.device}, and was to be skipped ({how})"
    elif promise.expected == "ran" and fitting is not False:
        verdict, words = "pass", f"warm-up asked {_asked(ask)} of {ask.device} ({how})"
    elif fitting is None:
        return _inconclusive(promise, f"warm-up asked {_asked(ask)} of {ask.device}, which does not tell its memory")
    else:
        verdict, words = "pass" if fitting else "fail", f"{_compared(ask)} ({how})"
        if ask.room is not None:
            limit = Limit(promise.expected, ask.room.bytes, promise.source)
    return CheckResult(
        CHECK,
        verdict,
        f"{CHECK} {VERDICT_WORDS[verdict]}: {words}",
        device=ask.device,
        kind="requested",
        how=how,
        measured=ask.bytes,
        limit=limit,
        details=(
            *([] if limit else [_promised(promise)]),
            *_told(ask),
            f"{warmup.signature} in the load of {load.place}",
        ),
        advice=_ADVICE if verdict == "fail" else "",
    )


def _nothing_asked(promise: Warmed, loads: Sequence[Load], how: str) -> CheckResult:
    called = [warmup for load in loads for warmup in load.warmups]
    devices = ", ".join(dict.fromkeys(device for warmup in called for device in warmup.rooms))
    seen = plural(sum(load.reached or bool(load.warmups) for load in loads), "load")
    verdict: Verdict = "fail" if promise.expected == "ran" else "pass"
    wanted = ", and it was to run" if verdict == "fail" else ""
    if not called:
        why = "it was not called: a load without device_map has none, and a guard may leave it out"
    elif devices:
        why = f"it was called for {devices} and asked for nothing"
    else:
        why = "it was called with a device map that names no accelerator"
    return CheckResult(
        CHECK,
        verdict,
        f"{CHECK} {VERDICT_WORDS[verdict]}: no warm-up memory was asked for in {seen}{wanted} ({how})",
        kind="requested",
        how=how,
        measured=0,
        details=(_promised(promise), why, *(f"load of {load.place}" for load in loads)),
        advice="give the load a device_map, and look for what leaves the warm-up out" if verdict == "fail" else "",
    )


def _compared(ask: Ask) -> str:
    """Both numbers, and what the second one is."""
    room = ask.room
    if ask.bytes < 0:
        card = f", a card of {format_size(room.total)}" if room else ""
        return f"warm-up asked {_asked(ask)} of {ask.device}{card}"
    if room is None:
        return f"warm-up asked {_asked(ask)}, and {ask.device} refused it"
    asked, there = compared(ask.bytes, room.bytes)
    capped = room.under_cap is not None and room.under_cap < room.free
    which = f"left under the cap of {ask.device}" if capped else f"free of {ask.device}"
    if ask.bytes > room.bytes:
        return f"warm-up asked {asked} > {there} {which}"
    refused = ", and was refused: it is not in one piece" if ask.failed else ""
    return f"warm-up asked {asked} ≤ {there} {which}{refused}"


def _asked(ask: Ask) -> str:
    return size(ask.bytes) if ask.bytes >= 0 else f"-{size(-ask.bytes)}, less than nothing"


def _told(ask: Ask) -> list[str]:
    room, lines = ask.room, []
    if room is not None:
        capped = "no cap" if room.cap is None else f"a cap of {size(room.cap)}"
        lines.append(
            f"{ask.device} at that moment: {size(room.total)} in all, {capped}, {size(room.free)} free, "
            f"{size(room.allocated)} allocated"
        )
    if ask.failed:
        lines.append(f"the request failed: {_REST.sub('', ask.failed)}")
    return lines


def _promised(promise: Warmed) -> str:
    return f'promised is "{promise.expected}", from {promise.source}'


def _no_load(loads: Sequence[Load], elsewhere: int) -> str:
    if loads:
        return f"a load was begun ({loads[0].place}) and did not come to its weights"
    if elsewhere:
        return f"the test loaded nothing itself; {plural(elsewhere, 'load')} of a wider fixture is not its own"
    return "no load of transformers was seen"


def _inconclusive(promise: Warmed, why: str) -> CheckResult:
    return CheckResult(CHECK, "inconclusive", f"{CHECK} INCONCLUSIVE: {why}", details=(_promised(promise),))
