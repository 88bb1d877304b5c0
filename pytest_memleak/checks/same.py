"""`same_on_all_ranks`: what ranks told each other in; a verdict out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_memleak.records.record import CheckResult
from pytest_memleak.values.comparing import differences
from pytest_memleak.values.exchange import Exchange, Told
from pytest_memleak.values.summary import Summary
from pytest_memleak.wording import plural

CHECK = "same_on_all_ranks"

NO_MODEL = (
    "no model was loaded or built here: call pytest_memleak.watch(model), or pytest_memleak.same_on_all_ranks(model)"
)
_ADVICE = (
    "give all ranks rank 0's values: broadcast buffers too, those that no checkpoint has and those that do not persist"
)
_MOST = 5


def judge_same(source: str, exchange: Exchange, mine: Sequence[Summary], how: str) -> CheckResult:
    """Tells the other ranks, and hears what they tell: all of them have to call it."""

    def with_rank_0(theirs: Any) -> tuple[list[str], int]:
        return differences([Summary.from_json(one) for one in theirs], mine, exchange.rank)

    return _judged(source, exchange.compare([one.as_json() for one in mine], with_rank_0), mine, how)


def _judged(source: str, told: Told, mine: Sequence[Summary], how: str) -> CheckResult:
    sharded = sum(one.sharded for one in mine)
    left_out: tuple[str, ...] = ()
    if sharded:
        left_out += (f"{plural(sharded, 'sharded parameter is', 'sharded parameters are')} not compared",)
    nowhere = [name for one in mine for name, said in one.tensors.items() if not said.bits]
    if nowhere:
        left_out += (
            f"{plural(len(nowhere), 'tensor has', 'tensors have')} no values here (on meta), and are not compared with "
            f"others that have none: {', '.join(nowhere[:3])}{', …' if nowhere[3:] else ''}",
        )
    asked = (f"promised by {source}",) if source else ()
    where = f"on rank {told.rank} of {told.size}"
    if told.found:
        more = len(told.found) - _MOST
        return CheckResult(
            CHECK,
            "fail",
            f"{CHECK} FAILED: {plural(len(told.found), 'tensor is', 'tensors are')} not rank 0's, seen {where} ({how})",
            kind="values",
            how=how,
            details=(*told.found[:_MOST], *([f"and {more} more"] if more > 0 else []), *told.silent, *left_out, *asked),
            advice=_ADVICE,
        )
    unknown = [name for one in mine for name in one.unknown]
    if told.silent or unknown or not told.compared:
        why = "; ".join(told.silent)
        if unknown:
            shown = f"{unknown[0]}{f' and {len(unknown) - 1} more' if unknown[1:] else ''}"
            why = why or f"the values of {shown} are not known, or cannot be got at"
        return inconclusive(source, f"{why or 'there was nothing to compare'}, {where}", left_out)
    return CheckResult(
        CHECK,
        "pass",
        f"{CHECK} passed: {plural(told.compared, 'tensor is', 'tensors are')} rank 0's, seen {where} ({how})",
        kind="values",
        how=how,
        details=(*left_out, *asked),
    )


def inconclusive(source: str, why: str, details: Sequence[str] = ()) -> CheckResult:
    asked = (f"promised by {source}",) if source else ()
    return CheckResult(CHECK, "inconclusive", f"{CHECK} INCONCLUSIVE: {why}", kind="values", details=(*details, *asked))
