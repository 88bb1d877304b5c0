"""What ranks ask for and are given: the marker's arguments, a backend, cards, and their time."""

from __future__ import annotations

import pytest
import torch

from pytest_memleak.errors import Unavailable
from pytest_memleak.hooks import assigning, sharing
from pytest_memleak.hooks.ranks import RankedTests, _timeout
from pytest_memleak.plan import Ranks
from pytest_memleak.ranks import cards, group
from pytest_memleak.ranks.job import TIME_IS
from pytest_memleak.ranks.world import World, current
from pytest_memleak.settings import SETTINGS
from pytest_memleak.workers.visible import Visible
from tests.conftest import Run

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
    pytest.mark.skipif(current() is not None, reason="these tests start ranks of their own"),
]


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ("ranks()", "*ranks(n, *"),
        ("ranks(0)", "*n=0 is not a number of ranks*"),
        ("ranks(True)", "*n=True is not a number of ranks*"),
        ("ranks(3, nnodes=2)", "*3 ranks are not to be shared alike by nnodes=2*"),
        ("ranks(2, backend=True)", "*backend=True is not a backend*"),
        ("ranks(2, timeout=0)", "*timeout=0 is not a number of seconds*"),
        ("ranks(2, timeout=float('inf'))", "*timeout=inf is not a number of seconds*"),
        ("ranks(2, timeout=float('nan'))", "*timeout=nan is not a number of seconds*"),
        ("ranks(2)\n@pytest.mark.max_peak('1G', rank=2)", "*rank=2, and *ranks has ranks 0 to 1 only*"),
        ("max_host_peak('1G', rank='sum')", "*rank='sum' is of a test on several ranks: add ranks(2)*"),
    ],
)
def test_bad_markers_start_nothing(run_on_cpu: Run, mark: str, said: str) -> None:
    result = run_on_cpu(f"import pytest\n@pytest.mark.{mark}\ndef test_it(): ...\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([said])


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is what it needs")
def test_a_backend_that_cannot_be_had_is_said() -> None:
    with pytest.raises(Unavailable, match=r"backend='nccl' needs GPUs .* leave it out"):
        group.begin("nccl", World(0, 2, 0, 2))


def test_cards_are_given_back_if_an_interrupt_comes_as_soon_as_they_are_taken(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    class Reservations:
        def take(self, *args: object, **kwargs: object) -> None:
            raise KeyboardInterrupt  # after all that it does

        def give_back(self) -> None:
            done.append("given back")

    monkeypatch.setattr(assigning, "place_of", lambda config: None)
    monkeypatch.setattr(sharing, "reservations_of", lambda config: Reservations())
    monkeypatch.setattr(cards, "here", lambda callers: (Visible("0", None), Visible("1", None)))
    settings = request.config.stash[SETTINGS]
    with (
        pytest.raises(KeyboardInterrupt),
        RankedTests(settings)._reserved(request.node, Ranks(2, "here"), None),
    ):
        pass
    assert done == ["given back"]


@pytest.mark.filterwarnings("ignore")  # of a plugin's setting, and of the marker
def test_whose_time_it_is_that_is_up(
    request: pytest.FixtureRequest, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = pytester.getitem("import pytest\n@pytest.mark.timeout(6)\ndef test_it(): ...", "test_it")

    def time_with(plugin: str, passed: float = 0) -> tuple[float, str]:
        monkeypatch.setattr(item.config.pluginmanager, "hasplugin", lambda name: name == plugin)
        return _timeout(item, Ranks(2, "here", timeout=60), request.config.stash[SETTINGS], passed)

    assert time_with("another") == (60, TIME_IS)  # a marker of nobody's
    assert time_with("timeout") == (4, "before the 6 s of pytest-timeout are over")
    assert time_with("timeout", 1.5) == (2.5, "before the 6 s of pytest-timeout are over")
    item.own_markers.clear()
    monkeypatch.setenv("PYTEST_TIMEOUT", "20")
    assert time_with("timeout") == (18, "before the 20 s of pytest-timeout are over")


def test_bad_timeout(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test(): ...")
    result = pytester.runpytest_subprocess("--memleak-ranks-timeout=soon")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--memleak-ranks-timeout*'soon' is not a number of seconds*"])
