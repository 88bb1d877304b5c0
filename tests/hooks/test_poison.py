"""`no_nan(poison=True)`: what is never written shows every time, and nothing else comes of it."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import Records, Run
from tests.hooks.values import BUILD, TRAIN, of_check, verdicts


def test_with_a_budget_on_committed_memory_it_runs_twice(run_on_cpu: Run, records: Records) -> None:
    result = run_on_cpu(
        BUILD
        + """
import unittest

runs = []

@pytest.fixture
def poisoned():
    runs.append(bool(torch.empty(100).isnan().all()))
    return runs[-1]

@pytest.mark.no_nan
@pytest.mark.max_host_peak("8MiB")
def test_untouched(poisoned):
    block = torch.empty(64 << 20)
    build(fixed=True)

@pytest.mark.no_nan
@pytest.mark.max_leak("1MiB", of="host", repeat=3, warmups=1)
def test_leaks_nothing(poisoned):
    build(fixed=True)

@pytest.mark.no_nan
@pytest.mark.max_host_peak("8MiB")
def test_both_break(poisoned):
    build()
    torch.zeros(64 << 20).fill_(1)

@pytest.mark.no_nan
@pytest.mark.max_host_peak("8MiB")
def test_passes_the_first_time_alone(poisoned):
    assert poisoned

@pytest.mark.no_nan(poison=False)
@pytest.mark.max_host_peak("8MiB")
def test_not_poisoned(poisoned):
    build(fixed=True)

class TestCase(unittest.TestCase):
    @pytest.mark.no_nan
    @pytest.mark.max_host_peak("8MiB")
    def test_of_a_class(self):
        runs.append(bool(torch.empty(100).isnan().all()))
        build(fixed=True)

def test_the_runs():
    assert runs == [
        *(True, False), *(True, False, False, False, False), *(True, False), *(True, False), False, *(True, False)
    ]
""",
        "--memleak-json=out.json",
        "-p",
        "no:randomly",
    )
    result.assert_outcomes(passed=5, failed=2)
    told = records()
    twice = [name for name, one in told.items() if any("ran twice" in note for note in one["notes"])]
    assert sorted(twice) == [
        "test_both_break",
        "test_leaks_nothing",
        "test_of_a_class",
        "test_passes_the_first_time_alone",
        "test_untouched",
    ]
    assert of_check(told["test_untouched"], "max_host_peak")["measured"] < 8 << 20
    both = told["test_both_break"]
    assert (of_check(both)["verdict"], of_check(both, "max_host_peak")["verdict"]) == ("fail", "fail")
    assert of_check(told["test_passes_the_first_time_alone"])["verdict"] == "not judged"


def test_where_there_are_no_fresh_fixtures_it_is_refused(pytester: pytest.Pytester, run_on_cpu: Run) -> None:
    pytester.makeconftest(
        """
        import pytest

        class Item(pytest.Item):
            def runtest(self): ...

        class File(pytest.File):
            def collect(self):
                item = Item.from_parent(self, name="line")
                item.add_marker(pytest.mark.no_nan)
                item.add_marker(pytest.mark.max_host_peak("1GiB"))
                yield item

        def pytest_collect_file(file_path, parent):
            return File.from_parent(parent, path=file_path) if file_path.suffix == ".txt" else None
        """
    )
    pytester.maketxtfile(test_doc="a line")
    result = run_on_cpu("")
    result.assert_outcomes(errors=1)
    text = " ".join(result.stdout.str().split())
    assert "needs two runs with fresh fixtures, and 'line' is of Item" in text


def test_poison_goes_whatever_becomes_of_the_test(run: Run) -> None:
    result = run(
        BUILD
        + """
@pytest.fixture(autouse=True)
def nothing_is_left():
    assert not torch.are_deterministic_algorithms_enabled() or is_asked
    yield

is_asked = True

@pytest.fixture
def fails():
    assert torch.empty(9).isnan().all()
    raise ValueError

@pytest.mark.no_nan
def test_set_up_fails(fails): ...

@pytest.mark.no_nan
def test_fails():
    raise ValueError

@pytest.mark.no_nan
def test_skips():
    pytest.skip("no")

@pytest.fixture(scope="module")
def wide():
    return torch.are_deterministic_algorithms_enabled()

@pytest.mark.no_nan
def test_wider_fixtures_are_not_poisoned(wide):
    assert not wide
    assert torch.are_deterministic_algorithms_enabled()
    build(fixed=True)

@pytest.mark.no_nan(poison=False)
def test_not_asked_for():
    assert not torch.are_deterministic_algorithms_enabled()
    build(fixed=True)

def test_after():
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
""",
    )
    result.assert_outcomes(passed=3, failed=1, skipped=1, errors=1)
    assert not torch.are_deterministic_algorithms_enabled()


def test_memory_is_the_same_with_it(run: Run, records: Records) -> None:
    result = run(
        TRAIN
        + """
def work():
    model = build(fixed=True, width=64)
    train(model, torch.optim.AdamW(model.parameters()), [1.0, 2.0])
    torch.empty(100_000)

@pytest.mark.max_peak("1GiB")
@pytest.mark.max_leak
def test_warm_up():
    work()

@pytest.mark.max_peak("1GiB")
@pytest.mark.max_leak
def test_plain():
    work()

@pytest.mark.max_peak("1GiB")
@pytest.mark.max_leak
@pytest.mark.no_nan
def test_poisoned():
    work()

@pytest.mark.max_peak("1GiB")
@pytest.mark.max_leak(repeat=2)
@pytest.mark.no_nan(gradients=True)
def test_with_gradients():
    work()
""",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=4)
    told = records()
    peak, leak = (of_check(told["test_plain"], check) for check in ("max_peak", "max_leak"))
    for name in ("test_poisoned", "test_with_gradients"):
        own = of_check(told[name], "max_peak")
        assert own["measured"] - own["base"] - (peak["measured"] - peak["base"]) == 0, name
        assert of_check(told[name], "max_leak")["measured"] == leak["measured"] == 0


def test_poison_that_the_test_switches_off_is_no_poison(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        BUILD
        + """
@pytest.mark.no_nan
def test_lifted():
    torch.use_deterministic_algorithms(False)
    model = build(fixed=True)

@pytest.mark.no_nan(poison=False)
def test_without():
    torch.use_deterministic_algorithms(False)
    model = build(fixed=True)

@pytest.mark.no_nan(gradients=True)
def test_a_loss_of_its_own():
    model = build(fixed=True)
    torch.autograd.backward([model(torch.ones(1, 64)).sum() * float("nan")])
    model.zero_grad()
    model(torch.ones(1, 64)).sum().backward()

@pytest.mark.no_nan
def test_a_type_without_a_fill():
    model = build(fixed=True)
    raise NotImplementedError('"fill_empty_deterministic_" not implemented for \\'Float4_e2m1fn_x2\\'')
"""
    )
    result.assert_outcomes(passed=1, failed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*no_nan INCONCLUSIVE: the test has switched the filling of uninitialized memory off itself*",
            "*no_nan FAILED: the loss of backward 1*",
            "*what to do: leave it as it comes, @pytest.mark.no_nan(poison=False)",
        ]
    )


def test_a_model_that_was_there_before_is_inconclusive(run: Run, records: Records) -> None:
    """Its memory was not poisoned: that it holds no NaN tells nothing."""
    result = run(
        BUILD
        + """
import copy

@pytest.fixture(scope="module")
def wide():
    return build(fixed=True)

@pytest.fixture(scope="module")
def watched():
    model = build(fixed=True)
    pytest_memleak.watch(model)
    return model

@pytest.fixture(scope="module")
def maker():
    return [build]

@pytest.fixture
def own():
    return build(fixed=True)

@pytest.mark.no_nan(model="fixture:wide")
def test_named(wide): ...

@pytest.mark.no_nan(model="fixture:wide", poison=False)
def test_named_as_it_is(wide): ...

@pytest.mark.no_nan
def test_watched(watched): ...

@pytest.mark.no_nan(poison=False)
def test_watched_as_it_is(watched): ...

@pytest.mark.no_nan
def test_watches_its_own(watched):
    pytest_memleak.watch(build(fixed=True))

@pytest.mark.no_nan
def test_watches_a_copy(watched):
    made = copy.deepcopy(watched)
    pytest_memleak.watch(made)

@pytest.mark.no_nan(model="fixture:own")
def test_of_a_function_fixture(own): ...

@pytest.mark.no_nan
def test_that_is_bad_all_the_same(watched):
    watched[1].bias.data[7] = float("nan")
""",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=5, failed=1, errors=2)
    assert verdicts(records) == {
        "test_named": "inconclusive",
        "test_named_as_it_is": "pass",
        "test_watched": "inconclusive",
        "test_watched_as_it_is": "pass",
        "test_watches_its_own": "pass",
        "test_watches_a_copy": "pass",
        "test_of_a_function_fixture": "pass",
        "test_that_is_bad_all_the_same": "fail",
    }
    told = {name: of_check(one)["message"] for name, one in records().items()}
    assert "its model was made in fixture 'wide' of scope 'module', before" in told["test_named"]
    assert "its model was made in a wider fixture, or outside of any test, and watched there" in told["test_watched"]
    assert "or say no_nan(poison=False)" in told["test_watched"]
