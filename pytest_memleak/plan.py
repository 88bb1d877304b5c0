"""What one test promised, read from its markers and the defaults: plain data, made before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_memleak.budget.expression import Expression

MIN_HOST_REPEATS = 3
# Of a peak: one verdict on all ranks, the highest or their sum; a number is one rank's, nothing each rank's own.
TOGETHER = ("max", "sum")
# Committed memory is counted in pages, and malloc keeps some of what it got: below this a host leak is noise.
HOST_LEAK_FLOOR = 256 * 1024


@dataclass(frozen=True)
class Budget:
    """A limit and where it was written."""

    limit: Expression
    source: str


@dataclass(frozen=True)
class PeakBudget(Budget):
    of: str | None = None
    device: str | int | None = None
    rank: int | str | None = None
    model: object = None
    warmup: bool = True
    """Whether what transformers' allocator warm-up asks for while it runs is counted."""


@dataclass(frozen=True)
class HostPeakBudget(Budget):
    model: object = None
    rank: int | str | None = None


@dataclass(frozen=True)
class LeakBudget(Budget):
    of: str | None = None
    repeat: int = 1
    warmups: int = 0

    @property
    def runs(self) -> int:
        return self.warmups + self.repeat


@dataclass(frozen=True)
class Warmed:
    """What is to become of transformers' allocator warm-up."""

    expected: str
    """``skipped``, ``fits`` or ``ran``."""
    source: str


@dataclass(frozen=True)
class NoNan:
    """What is to be finite: parameters and buffers, on request gradients, losses and the state of optimizers."""

    source: str
    poison: bool = True
    gradients: bool = False
    model: object = None


@dataclass(frozen=True)
class Same:
    """Buffers and unsharded parameters are to be rank 0's."""

    source: str


@dataclass(frozen=True)
class Cap:
    """The size of the card a test runs on."""

    bytes: int
    source: str
    told: bool = True
    """Whether the program is told (mem_get_info, device properties), or only refused."""
    free: int | None = None
    """How much of the card is not occupied by somebody else; None: all of it."""


@dataclass(frozen=True)
class Ranks:
    """On how many processes the test's body runs at once."""

    size: int
    source: str
    backend: str | bool | None = None
    """Of the process group; None: what fits the card; False: the test makes it itself."""
    nodes: int = 1
    timeout: float | None = None


@dataclass(frozen=True)
class Upstream:
    """What the test's libraries are made to be while it runs: names of fixes, or of bugs that are put back."""

    names: tuple[str, ...]
    source: str
    flavour: str | None = None


@dataclass(frozen=True)
class Plan:
    """Everything to be watched during one test."""

    peak: PeakBudget | None = None
    host_peak: HostPeakBudget | None = None
    leak: LeakBudget | None = None
    cap: Cap | None = None
    warmup: Warmed | None = None
    no_nan: NoNan | None = None
    same: Same | None = None
    bugs: Upstream | None = None
    fixes: Upstream | None = None
    baseline: bool = False
    """Its peak is held against the run's baseline, and kept for it."""
    report: bool = False
    """Report mode: peak and leak are measured without any limit, and no limit fails the test."""
    cap_is_asked: bool = False
    """The cap is the test's own, by its marker, and not just the run's."""
    marked: bool = True
    """False when only the run's own card concerns the test: then nothing is measured where the CPU stands in."""

    @property
    def budgets(self) -> tuple[Budget, ...]:
        return tuple(budget for budget in (self.peak, self.host_peak, self.leak) if budget is not None)

    @property
    def names(self) -> frozenset[str]:
        """The model sizes that the limits mention."""
        return frozenset[str]().union(*(budget.limit.names for budget in self.budgets))
