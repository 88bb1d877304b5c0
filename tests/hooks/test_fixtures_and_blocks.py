"""The fixtures `card` and `memory`, and the same for code without them."""

from __future__ import annotations

import numpy
import pytest
import torch

import pytest_memleak
from pytest_memleak.blocks import Measured
from pytest_memleak.cards.card import choose
from pytest_memleak.errors import BudgetExceeded, Inconclusive
from tests.conftest import Records, Run, run_in_process


def test_memory_measures_a_block(run: Run, records: Records) -> None:
    result = run(
        """
        import pytest, torch

        def test_green(memory):
            with memory.measure("load") as load:
                kept = torch.ones(2 * 1024**2, dtype=torch.uint8)
                torch.ones(4 * 1024**2, dtype=torch.uint8)
            assert load.grown == 2 * 1024**2
            assert load.peak >= 6 * 1024**2
            load.limit("8MiB")

        def test_red(memory):
            with memory.measure("load") as load:
                load.limit("2MiB")
                torch.ones(4 * 1024**2, dtype=torch.uint8)

        def test_of_the_model(memory):
            with memory.measure("build") as build:
                torch.nn.Linear(1024, 1024, bias=False)
            build.limit("2.1 * fp16_size")
            with pytest.raises(AssertionError, match="fp16_size = 2,097,152 B"):
                build.limit("1.9 * fp16_size")

        @pytest.mark.max_peak("4MiB")
        def test_does_not_hide_the_peak_from_the_marker(memory):
            torch.ones(8 * 1024**2, dtype=torch.uint8)
            with memory.measure("nothing") as nothing:
                pass
            nothing.limit("4MiB")
        """,
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=2, failed=2)
    (block,) = records()["test_green"]["blocks"]
    assert (block["name"], block["grown"]) == ("load", 2 * 1024**2)


def test_verdict_on_a_block_is_that_of_its_test(run_on_cpu: Run, records: Records) -> None:
    result = run_on_cpu(
        """
        import pytest, torch, unittest
        import pytest_memleak
        from pytest_memleak.errors import Inconclusive

        def test_red(memory):
            with memory.measure("load") as load:
                load.limit("2MiB")
                torch.ones(4 * 1024**2, dtype=torch.uint8)

        def test_unknown_model(memory):
            with memory.measure("load") as load:
                torch.ones(1024)
            load.limit("fp16_size")

        def test_that_is_expected(memory):
            with memory.measure("load") as load:
                torch.ones(1024)
            with pytest.raises(Inconclusive):
                load.limit("fp16_size")

        @pytest.mark.xfail
        def test_that_is_expected_to_fail(memory):
            with memory.measure("load") as load:
                torch.ones(1024)
            load.limit("fp16_size")

        class TestOld(unittest.TestCase):
            @pytest.fixture(autouse=True)
            def with_memory(self, memory):
                self.memory = memory

            def test_old(self):
                with self.memory.measure("load") as load:
                    torch.ones(1024)
                load.limit("fp16_size")
        """,
        "--memleak-json=out.json",
        "-v",
    )
    result.assert_outcomes(failed=1, errors=3, passed=1)
    # Its line in the summary says so too, from pytest 9 on.
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_unknown_model*", "*block 'load' INCONCLUSIVE*"])
    result.stdout.no_fnmatch_line("*not enforced*2 MiB*")
    verdicts = {name: test["verdict"] for name, test in records().items()}
    assert verdicts == {
        "test_red": "fail",
        "test_unknown_model": "inconclusive",
        "test_that_is_expected": None,
        "test_that_is_expected_to_fail": "inconclusive",
        "test_old": "inconclusive",
    }


def test_limit_of_a_block_that_holds_is_enforced(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import torch

        def test_green(memory):
            with memory.measure("load") as load:
                load.limit("2MiB")
                torch.ones(1024)
        """,
        "-v",
    )
    result.stdout.fnmatch_lines(["*block 'load' passed: peak * limit 2 MiB*"])
    result.stdout.no_fnmatch_line("*not enforced*")


def test_peak_of_a_block_is_never_less_than_what_it_grew_by() -> None:
    with Measured("arrays", card=choose("cpu")) as arrays:
        held = torch.from_numpy(numpy.ones(4 * 1024**2, dtype=numpy.uint8))
    assert arrays.grown == held.numel() <= arrays.peak


def test_card_serves_fixtures_of_any_scope(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import pytest, torch

        @pytest.fixture(scope="session")
        def model(card):
            return torch.nn.Linear(8, 8).to(card.device)

        def test_it(model, card):
            assert (card.device, card.backend, card.cap) == ("cpu", "cpu", None)

        @pytest.mark.gpu_cap("1G")
        def test_capped(card):
            assert card.cap == card.total == 1024**3
        """
    )
    result.assert_outcomes(passed=2)


def test_conftest_may_shadow_the_fixtures(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import pytest, torch

        @pytest.fixture
        def card():
            return "ace of spades"

        @pytest.fixture
        def memory():
            return "none"

        @pytest.mark.max_peak("4MiB")
        def test_it(card, memory):
            assert (card, memory) == ("ace of spades", "none")
        """
    )
    result.assert_outcomes(passed=1)


def test_who_only_has_the_name_is_not_measured(pytester: pytest.Pytester, run_on_cpu: Run) -> None:
    """A parameter, a fixture of the project's own; one that builds on ours is ours."""
    pytester.makeconftest(
        """
        import pathlib
        import pytest
        from pytest_memleak.hooks.attributes import PLAN

        @pytest.hookimpl(trylast=True)
        def pytest_collection_finish(session):
            names = [item.name for item in session.items if PLAN in item.stash]
            pathlib.Path("measured").write_text(" ".join(names))
        """
    )
    result = run_on_cpu(
        """
        import pytest, torch

        @pytest.fixture
        def memory():
            return "none"

        class TestOurs:
            @pytest.fixture
            def memory(self, card):
                return card.total

            def test_builds_on_it(self, memory):
                assert memory

        class TestExtended:
            @pytest.fixture
            def card(self, card):
                return card.device

            def test_extends_it(self, card):
                assert card == "cpu"

        @pytest.mark.parametrize("card", ["spades"])
        def test_parameter(card): ...

        def test_own_fixture(memory): ...
        """
    )
    result.assert_outcomes(passed=4)
    assert pytester.path.joinpath("measured").read_text().split() == ["test_builds_on_it", "test_extends_it"]


def test_without_pytest() -> None:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    with pytest_memleak.measure("build") as build:
        model = torch.nn.Linear(1024, 1024, bias=False, device=device)
        pytest_memleak.watch(model)
    assert build.grown >= 4 * 1024**2
    build.limit("2 * fp16_size + 4GiB")
    with pytest.raises(BudgetExceeded, match="limit of the block 'build'"):
        build.limit("1KiB")


def test_a_block_is_read_after_its_end() -> None:
    with pytest_memleak.measure("early") as early, pytest.raises(Inconclusive, match="has not ended"):
        _ = early.peak


def test_help_reads_well(pytester: pytest.Pytester) -> None:
    markers = run_in_process(pytester, "--markers").stdout.str()
    assert "@pytest.mark.max_leak(limit=0, of=None, repeat=1, warmups=None): What the test still holds" in markers
    fixtures = run_in_process(pytester, "--fixtures").stdout.str()
    assert "card [session scope]" in fixtures
    assert "memory" in fixtures
    options = run_in_process(pytester, "--help").stdout.str()
    assert "--gpu-cap=SIZE" in options
    assert "memleak_max_peak" in options
