"""What tests receive: the card they run on, and a way to measure a part of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_memleak.blocks import Measured
    from pytest_memleak.cards.card import Card
    from pytest_memleak.hooks.running import RunningTest
    from pytest_memleak.plan import Cap
    from pytest_memleak.warming import Warmups


def current_test(config: pytest.Config) -> RunningTest | None:
    measuring = config.pluginmanager.getplugin("memleak-measuring")
    return measuring.test if measuring else None


class CardInUse:
    """The card of the test that runs now. It serves fixtures of any scope: ask it when you need it."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @property
    def device(self) -> str:
        """Where to put tensors: ``cuda:0``, ``cpu``."""
        return self._card.device

    @property
    def backend(self) -> str:
        """``real``, ``simulated`` or ``cpu``: whether there is a device, or what stands in for one."""
        return self._card.backend

    @property
    def cap(self) -> int | None:
        """The card's size in bytes if it is capped."""
        cap = self._cap
        return cap.bytes if cap else None

    @property
    def total(self) -> int:
        """The card's size in bytes: its cap if it has one, else what the device has."""
        return self.cap or self._card.total

    def __repr__(self) -> str:
        return f"<card {self.device}, {self.backend}, {self.total:,} B>"

    @property
    def _card(self) -> Card:
        test = current_test(self._config)
        if test is not None:
            return test.card
        from pytest_memleak.cards.card import choose
        from pytest_memleak.settings import SETTINGS

        settings = self._config.stash[SETTINGS]
        return choose(settings.backend, cards=settings.cards)

    @property
    def _cap(self) -> Cap | None:
        test = current_test(self._config)
        return test.plan.cap if test is not None else None


class Memory:
    """Measures parts of a test: ``with memory.measure("load") as load: …``."""

    def __init__(self, request: pytest.FixtureRequest, card: CardInUse) -> None:
        self._config = request.config
        self._card = card
        self._blocks: list[Measured] = []

    def measure(self, name: str, *, of: str = "allocated") -> Measured:
        """A block to enter with ``with``: gives ``peak`` and ``grown`` in bytes, and ``limit("1.1 * fp16_size")``."""
        from pytest_memleak.blocks import Measured

        test = current_test(self._config)
        if test is None:
            block = Measured(name, of=of, card=self._card._card)
        else:
            block = Measured(name, of=of, card=test.card, when_done=test.blocks.append, when_judged=test.judge_block)
        self._blocks.append(block)
        return block

    def end(self) -> None:
        """The test is over: a limit that was promised and never judged must not seem to hold."""
        unjudged = [words for block in self._blocks if (words := block.give_up())]
        if unjudged:
            pytest.fail("INCONCLUSIVE: " + "; ".join(unjudged), pytrace=False)


class Checkpoints:
    """Makes checkpoints out of configs, each once in a session."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[str, str, str, bool], Path] = {}

    def __call__(self, config: Any, dtype: str = "bfloat16", sparse: bool = False) -> Path:
        """The folder for `from_pretrained`: random weights, or with `sparse` zeros that take no disk, at any size."""
        from pytest_memleak.upstream.checkpoints import make_checkpoint, require_config

        require_config(config)
        key = (type(config).__name__, config.to_json_string(use_diff=False), str(dtype), sparse)
        if key not in self._made:
            folder = self._folder / f"{config.model_type}-{len(self._made)}"
            self._made[key] = make_checkpoint(config, folder, dtype=dtype, sparse=sparse)
        return self._made[key]


@pytest.fixture(scope="session")
def checkpoint() -> Iterator[Checkpoints]:
    """Checkpoints from configs, gone at the end: checkpoint(config, dtype="bfloat16", sparse=True) gives a folder."""
    # Not pytest's own folders: those are kept, and who copies them would fill a disk with what were holes.
    with tempfile.TemporaryDirectory(prefix="pytest-memleak-") as folder:
        yield Checkpoints(Path(folder))


@pytest.fixture(scope="session")
def card(pytestconfig: pytest.Config) -> CardInUse:
    """The card the test runs on: device, backend, cap, total. For fixtures of any scope."""
    return CardInUse(pytestconfig)


@pytest.fixture
def warmup_spy(request: pytest.FixtureRequest, card: CardInUse) -> Iterator[Warmups]:
    """What transformers' allocator warm-ups did so far: warmup_spy["cuda:0"] has called, asked, cap, free, fits."""
    from pytest_memleak.warming import Warmups, spy_on

    test = current_test(request.config)
    if test is not None:
        yield Warmups(test.measurement.warmups, test.card)
        return
    with spy_on(card._card, None) as spy:
        yield Warmups(spy, card._card)


@pytest.fixture
def memory(request: pytest.FixtureRequest, card: CardInUse) -> Iterator[Memory]:
    """Measures a part: with memory.measure("load") as load: ... gives load.peak, load.grown, load.limit("2GiB")."""
    measuring = Memory(request, card)
    yield measuring
    measuring.end()
