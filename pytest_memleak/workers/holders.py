"""Who holds how much of which card: what each process of this user's runs tells the others, as data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Hold:
    """What one process has of one card, in bytes."""

    idle: int = 0
    """What it keeps between tests: its context, and what wider fixtures hold."""
    claim: int = 0
    """What its test may take, all of the process included; 0 between tests."""
    foreign: int | None = None
    """What others than these runs had of the card, when that was last known for certain."""
    known_at: float = 0.0

    @property
    def most(self) -> int:
        return max(self.idle, self.claim)


@dataclass(frozen=True)
class Want:
    """What a process waits for."""

    test: str
    need: int
    """Bytes of each card, all of the process included."""
    count: int
    among: tuple[str, ...]
    since: float
    """By the machine's clock since its start, which all processes share."""


@dataclass(frozen=True)
class Holder:
    pid: int
    worker: str
    test: str = ""
    cards: Mapping[str, Hold] = field(default_factory=dict)
    want: Want | None = None

    @property
    def name(self) -> str:
        return f"{self.worker or 'pytest'} (pid {self.pid})"

    def of(self, key: str) -> Hold:
        return self.cards.get(key, _NOTHING)

    def as_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Holder:
        data = json.loads(text)
        want = data.pop("want")
        if want is not None:
            want = Want(**want | {"among": tuple(want["among"])})
        cards = {key: Hold(**hold) for key, hold in data.pop("cards").items()}
        return cls(**data, cards=cards, want=want)


_NOTHING = Hold()
