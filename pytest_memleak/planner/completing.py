"""A plan of which a user has said a part, completed into one that runs: it may be slow, but it is never refused."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_memleak.errors import BadInput
from pytest_memleak.planner.layout import Layout
from pytest_memleak.planner.plan import Plan
from pytest_memleak.wording import plural

KNOBS = ("n_persist", "n_buffer", "n_swap", "n_checkpoint", "n_offload")
_OF_BLOCKS = KNOBS[2:]


def complete(layout: Layout, **knobs: int | None) -> tuple[Plan, str]:
    """And a sentence about what was filled in, empty if nothing was. A knob that is None counts as not given.

    What is filled in is on the safe side: nothing persists, as little as possible is on the card at a time, and blocks
    of which nothing was said are checkpointed.
    """
    given = checked(layout, **knobs)
    n_persist = given.get("n_persist", _n_persist(layout, given.get("n_buffer")))
    filled = {
        "n_persist": n_persist,
        "n_buffer": layout.fewest_buffers(n_persist),
        "n_swap": 0,
        "n_checkpoint": max(0, layout.blocks - given.get("n_swap", 0) - given.get("n_offload", 0)),
        "n_offload": 0,
    }
    plan = Plan(**(filled | given))
    if conflict := admissible(layout, plan):
        raise BadInput(f"{listed(given)} cannot be had together: {conflict}")
    missing = {name: value for name, value in filled.items() if name not in given}
    if not missing:
        return plan, ""
    said = f"{listed(given)} {'was' if len(given) == 1 else 'were'}" if given else "nothing was"
    return plan, f"{said} given; filled in, so that it runs: {listed(missing)}"


def checked(layout: Layout, **knobs: int | None) -> dict[str, int]:
    """Those that were given. Each by itself is possible in some plan."""
    given: dict[str, int] = {}
    for name, value in knobs.items():
        if name not in KNOBS:
            raise BadInput(f"{name}={value!r}: a plan has no such knob, but {', '.join(KNOBS)}")
        if value is None:
            continue
        most, what = (layout.blocks, "blocks") if name in _OF_BLOCKS else (len(layout.chunks), "chunks")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise BadInput(f"{name}={value!r} has to be an integer from 0 to {most}: there are {most} {what}")
        given[name] = value
    return given


def admissible(layout: Layout, plan: Plan) -> str:
    """Why the plan cannot run and what would do, or nothing if it can."""
    for name, value in vars(plan).items():
        if value < 0:
            return f"{name}={value} is less than 0"
    if plan.n_persist > len(layout.chunks):
        return f"n_persist={plan.n_persist} is more than the {plural(len(layout.chunks), 'chunk')} of the model"
    wanted = {name: value for name, value in vars(plan).items() if name in _OF_BLOCKS and value}
    if sum(wanted.values()) > layout.blocks:
        return (
            f"{listed(wanted)} make {sum(wanted.values())} blocks, and there are {layout.blocks}: together they may be "
            f"{layout.blocks} at most"
        )
    return _buffers(layout, plan)


def _buffers(layout: Layout, plan: Plan) -> str:
    streamed, fewest = len(layout.streamed(plan.n_persist)), layout.fewest_buffers(plan.n_persist)
    if fewest <= plan.n_buffer <= streamed:
        return ""
    if not streamed:
        return (
            f"n_buffer={plan.n_buffer} has nothing to hold, because n_persist={plan.n_persist} keeps all chunks on the "
            "card: n_buffer=0 would do, or a lower n_persist"
        )
    does = f"n_buffer={fewest}" if fewest == streamed else f"n_buffer from {fewest} to {streamed}"
    if plan.n_buffer > streamed:
        return (
            f"n_buffer={plan.n_buffer} is more than the {plural(streamed, 'chunk')} that n_persist={plan.n_persist} "
            f"leaves to be streamed: {does} would do, or a lower n_persist"
        )
    return (
        f"n_buffer={plan.n_buffer} is too few, because with n_persist={plan.n_persist} a block needs "
        f"{plural(fewest, 'streamed chunk')} at once: {does} would do, or a higher n_persist"
    )


def _n_persist(layout: Layout, n_buffer: int | None) -> int:
    """The lowest with which so many buffers are enough. One chunk more lowers what is needed by one at most, so that
    then all of them are needed: they never outnumber the streamed chunks."""
    if n_buffer is None:
        return 0
    enough = (n for n in range(len(layout.chunks) + 1) if layout.fewest_buffers(n) <= n_buffer)
    return next(enough)


def listed(knobs: Mapping[str, int]) -> str:
    """``n_swap=2 and n_offload=3``."""
    *others, last = [f"{name}={value}" for name, value in knobs.items()]
    return f"{', '.join(others)} and {last}" if others else last
