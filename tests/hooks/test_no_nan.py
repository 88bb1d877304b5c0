"""`no_nan` on tests: red on values that nobody wrote or that a step has made, green without, and whose they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pytest_memleak.errors
from tests.conftest import Records, Run
from tests.hooks.values import BUILD, TRAIN, of_check, verdicts


def test_the_bug_is_red_wherever_the_model_is_and_the_fix_is_green(run: Run, records: Records) -> None:
    result = run(
        BUILD
        + """
@pytest.mark.no_nan
def test_ends_with_the_body():
    model = build()

@pytest.mark.no_nan
def test_ends_before():
    model = build()
    del model
    gc.collect()

@pytest.mark.no_nan
def test_in_a_cycle():
    model = build()
    model.itself = [model]

@pytest.fixture
def model():
    return build()

@pytest.mark.no_nan
def test_of_a_fixture(model): ...

@pytest.mark.no_nan()
class TestClass:
    def test_method(self):
        self.model = build()

@pytest.mark.no_nan
def test_one_of_two():
    build(fixed=True)
    build()

@pytest.mark.no_nan
def test_fixed():
    model = build(fixed=True)

@pytest.mark.no_nan
def test_mended_later():
    model = build()
    model.requires_grad_(False)
    for layer in model:
        layer.reset_parameters()

@pytest.mark.no_nan
@pytest.mark.xfail(strict=True)
def test_expected():
    build()
""",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(failed=6, passed=2, xfailed=1)
    told = records()
    message = (
        "no_nan FAILED: 0.weight: 100 % of 4,096 values are NaN, the first at [0, 0], and 3 more are as bad (measured)"
    )
    for name, one in told.items():
        if name not in ("test_fixed", "test_mended_later"):
            assert of_check(one)["message"] == message, name
            assert of_check(one)["measured"] is None
    fixed = of_check(told["test_fixed"])
    assert fixed["message"] == "no_nan passed: no NaN in 4 tensors (measured)"
    assert "looked at 4 parameters" in fixed["details"]


def test_the_line_that_allocated_is_named(run_on_cpu: Run, records: Records) -> None:
    result = run_on_cpu(
        BUILD
        + """
@pytest.mark.no_nan
def test_bug():
    model = build()
    model.register_buffer("table", torch.empty(3000), persistent=False)
    model.register_buffer("mask", torch.full((4,), -torch.inf))
""",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(failed=1)
    told = of_check(records()["test_bug"])
    lines = [line for line in told["details"] if "weight" in line or "table" in line]
    assert len(lines) == 3
    assert lines[0].startswith("table (non-persistent buffer, float32 [3000] on cpu): 100 % of 3,000 values are NaN")
    assert lines[0].endswith("; allocated at test_it.py:16")
    assert all(line.endswith("; allocated at test_it.py:8") for line in lines[1:])
    assert any(line.startswith("in Sequential (built at test_it.py:7), when it ended") for line in told["details"])


def test_which_model_is_meant(run: Run, records: Records) -> None:
    result = run(
        BUILD
        + """
@pytest.mark.no_nan
def test_watched_is_fine():
    fine = build(fixed=True)
    build()
    pytest_memleak.watch(fine)

@pytest.mark.no_nan
def test_watched_is_bad():
    bad = build()
    build(fixed=True)
    pytest_memleak.watch(bad)

@pytest.fixture(scope="module")
def wide():
    model = build(fixed=True)
    model[1].bias.data[7] = float("nan")
    return model

@pytest.mark.no_nan
def test_somebody_elses(wide): ...

@pytest.mark.no_nan(model="fixture:wide")
def test_named(wide): ...

@pytest.mark.no_nan(model="fixture:wode")
def test_no_such_fixture(wide): ...

@pytest.mark.no_nan
def test_none(): ...

@pytest.mark.no_nan
def test_on_meta():
    model = build(fixed=True)
    model[1].to("meta")

@pytest.mark.no_nan
def test_all_on_meta():
    model = build(fixed=True).to("meta")

@pytest.mark.no_nan
def test_its_own_failure():
    build()
    assert 0
""",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=2, failed=3, errors=4)
    assert verdicts(records) == {
        "test_watched_is_fine": "pass",
        "test_watched_is_bad": "fail",
        "test_somebody_elses": "inconclusive",
        "test_named": "fail",
        "test_no_such_fixture": "inconclusive",
        "test_none": "inconclusive",
        "test_on_meta": "pass",
        "test_all_on_meta": "inconclusive",
        "test_its_own_failure": "not judged",
    }
    told = {name: of_check(one)["message"] for name, one in records().items()}
    assert "1.bias: 1.56 % of 64 values are NaN, the first at [7]" in told["test_named"]
    assert 'did you mean model="fixture:wide"?' in told["test_somebody_elses"]
    assert "the test uses no fixture 'wode'" in told["test_no_such_fixture"]
    assert (
        told["test_on_meta"] == "no_nan passed: no NaN in 2 tensors, 2 more without values (unmaterialized) (measured)"
    )
    assert "all 4 tensors are unmaterialized" in told["test_all_on_meta"]


def test_gradients_losses_and_the_state_of_optimizers(run: Run, records: Records) -> None:
    result = run(
        TRAIN
        + """
inf = float("inf")

@pytest.mark.no_nan(gradients=True)
def test_fine():
    model = build(fixed=True)
    train(model, torch.optim.AdamW(model.parameters()), [1.0, 2.0, 3.0])

@pytest.mark.no_nan(gradients=True)
def test_infinite_gradient_in_a_step():
    model = build(fixed=True)
    train(model, torch.optim.SGD(model.parameters(), lr=0.0), [1.0, inf, 1.0])
    model.zero_grad()
    for layer in model:
        layer.reset_parameters()  # nothing of it is left

@pytest.mark.no_nan(gradients=True)
def test_infinite_norm():
    model = build(fixed=True)
    train(model, torch.optim.SGD(model.parameters(), lr=0.0), [1.9e19])
    model.zero_grad()

@pytest.mark.no_nan(gradients=True)
def test_loss():
    model = build(fixed=True)
    (model(torch.ones(64)).sum() * 0 + inf).backward()

@pytest.mark.no_nan(gradients=True)
def test_gradient_at_the_end():
    model = build(fixed=True)
    Diverges.apply(model(torch.ones(64)), inf).backward()

@pytest.mark.no_nan(gradients=True)
def test_state():
    model = build(fixed=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    train(model, optimizer, [1.0])
    optimizer.state[model[1].bias]["exp_avg_sq"].fill_(inf)

@pytest.mark.no_nan(gradients=True)
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_scaler_skips(fused):
    model = build(fixed=True)
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    scaler = torch.amp.GradScaler(next(model.parameters()).device.type)
    for factor in (inf, 1.0):
        optimizer.zero_grad()
        scaler.scale(Diverges.apply(model(torch.ones(64)), factor)).backward()
        scaler.step(optimizer)
        scaler.update()

@pytest.mark.no_nan(gradients=True)
def test_without_any():
    model = build(fixed=True)
    model(torch.ones(64))

@pytest.mark.no_nan
def test_not_asked_for():
    model = build(fixed=True)
    Diverges.apply(model(torch.ones(64)), inf).backward()
""",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=4, failed=5, errors=1)
    told = {name: of_check(one) for name, one in records().items()}
    step = told["test_infinite_gradient_in_a_step"]
    assert step["message"].startswith("no_nan FAILED: the gradient of 0.weight before step 2 of SGD: ")
    assert told["test_infinite_norm"]["message"] == (
        "no_nan FAILED: the norm of all gradients before step 1 of SGD is infinite (measured)"
    )
    assert "each is finite, the largest is " in told["test_infinite_norm"]["details"][0]
    assert told["test_loss"]["message"].startswith("no_nan FAILED: the loss of backward 1: its one value is infinite")
    end = told["test_gradient_at_the_end"]["message"]
    assert end.startswith("no_nan FAILED: 0.weight.grad: ")
    assert ".grad" in end
    state = told["test_state"]["message"]
    assert state == (
        "no_nan FAILED: AdamW.state[3]['exp_avg_sq']: 100 % of 64 values are infinite, the first at [0] (measured)"
    )
    assert "no gradient was there" in told["test_without_any"]["message"]
    kinds = told["test_fine"]["details"][0].removeprefix("looked at ").split(", ")
    # Gradients of a step, and those at the end. The state of AdamW: two moments and the step of four parameters.
    assert sorted(kinds) == ["1 loss", "12 tensors of optimizers", "4 parameters", "8 gradients"]


def test_reports_and_the_page_show_it(run_on_cpu: Run, records: Records) -> None:
    pytest.importorskip("plotly")
    text = BUILD + "\n@pytest.mark.no_nan\ndef test_bug():\n    build()\n"
    files = ("--memleak-json=out.json", "--memleak-html=a.html", "--junitxml=out.xml")
    result = run_on_cpu(text, *files, "--memleak-mode=report", "-v")
    result.assert_outcomes(passed=1)
    told = records()["test_bug"]
    assert of_check(told)["enforced"] is False
    assert "100 % of 4,096 values are NaN" in Path("a.html").read_text()
    assert 'name="memleak.no_nan.verdict" value="fail"' in Path("out.xml").read_text()
    assert "memleak.no_nan.measured" not in Path("out.xml").read_text()
    result.stdout.fnmatch_lines(["1 test read in report mode: 1 would fail", "*no_nan FAILED: 0.weight: 100 %*"])


def test_bad_arguments(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
import pytest

@pytest.mark.no_nan(poison="yes")
def test_poison(): ...

@pytest.mark.no_nan(model="a/path")
def test_model(): ...

@pytest.mark.no_nan(3)
def test_position(): ...

@pytest.mark.same_on_all_ranks(2)
def test_ranks(): ...
"""
    )
    result.assert_outcomes(errors=4)
    text = " ".join(result.stdout.str().split())
    assert "test_it.py:3: @pytest.mark.no_nan: poison='yes': write True or False" in text
    assert "model='a/path' has no values to look into" in text
    assert "allowed is no_nan(poison=True, gradients=False, model=None)" in text
    assert "allowed is same_on_all_ranks()" in text


def test_without_ranks_there_is_nothing_to_compare(run: Run) -> None:
    result = run(
        BUILD
        + """
@pytest.mark.same_on_all_ranks
def test_alone():
    build(fixed=True)

@pytest.mark.max_peak("1GiB")
def test_a_function_that_cannot_judge():
    pytest_memleak.same_on_all_ranks(build(fixed=True))

@pytest.mark.max_peak("1GiB")
def test_a_block_that_cannot_judge():
    with pytest_memleak.measure("block") as block:
        block.limit("fp16_size")
"""
    )
    result.assert_outcomes(errors=3)
    text = " ".join(result.stdout.str().split())
    assert "same_on_all_ranks INCONCLUSIVE: there is no process group" in text
    assert "@pytest.mark.ranks(2)" in text


def test_functions(run: Run) -> None:
    result = run(
        BUILD
        + """
def test_no_nan():
    model = build(fixed=True)
    pytest_memleak.no_nan(model)
    pytest_memleak.no_nan([model, {"more": torch.ones(2)}], losses=torch.tensor(1.0))
    with pytest.raises(AssertionError, match="losses: its one value is NaN"):
        pytest_memleak.no_nan(model, losses=torch.tensor(float("nan")))
    model[0].weight.grad = torch.full((64, 64), 1e19)
    pytest_memleak.no_nan(model)
    with pytest.raises(AssertionError, match="the norm of all gradients is infinite"):
        pytest_memleak.no_nan(model, gradients=True)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    optimizer.step()
    pytest_memleak.no_nan(model, optimizer=optimizer)
    optimizer.state[model[0].weight]["momentum_buffer"][3, 4] = float("inf")
    with pytest.raises(AssertionError, match=r"SGD.state\\[0\\]\\['momentum_buffer'\\]: 1 of 4,096 values is infinite"):
        pytest_memleak.no_nan(model, optimizer=optimizer)
    model[1].bias.data[5] = float("inf")
    with pytest.raises(AssertionError, match=r"test.1.bias: 1.56 % of 64 values are infinite, the first at \\[5\\]"):
        pytest_memleak.no_nan({"test": model})
"""
    )
    result.assert_outcomes(passed=1)


def test_functions_that_find_nothing_to_look_at_do_not_pass() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(pytest_memleak.errors.Inconclusive, match="no gradient was there"):
        pytest_memleak.no_nan(model, gradients=True)
    with pytest.raises(pytest_memleak.errors.Inconclusive, match="it has no state yet"):
        pytest_memleak.no_nan(model, optimizer=torch.optim.AdamW(model.parameters()))
    with pytest.raises(pytest_memleak.errors.Inconclusive, match="none among them"):
        pytest_memleak.no_nan(model, losses=[])
