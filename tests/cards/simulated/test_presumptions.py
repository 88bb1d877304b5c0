"""What is presumed where a card would decide: the order of a loader's threads, and how long generated text is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch

from pytest_memleak.cards.simulated.presumptions import Presumptions
from tests.conftest import Records

WAIT = 30.0
Submit = Callable[..., Future[Any]]


def submit_of(module: str) -> Submit:
    """A function that hands jobs to a pool, as one of that module."""
    names: dict[str, Any] = {"__name__": module}
    exec("def submit(pool, job, *args):\n    return pool.submit(job, *args)", names)
    found: Submit = names["submit"]
    return found


def test_jobs_of_the_loader_are_done_when_they_were_handed_over() -> None:
    load, done = submit_of("transformers.core_model_loading"), []

    def job(number: int) -> int:
        time.sleep(0.01 * (4 - number))  # the first takes longest
        done.append((number, threading.current_thread() is threading.main_thread()))
        return number

    presumptions = Presumptions()
    with presumptions, ThreadPoolExecutor(4) as pool:
        for number in range(4):
            future = load(pool, job, number)
            assert future.done()
            assert future.result() == number
    assert done == [(number, False) for number in range(4)]
    (remark,) = presumptions.remarks()
    assert "as far ahead as their pool lets it" in remark
    with presumptions.set_aside():
        assert presumptions.remarks() == ()
    assert presumptions.remarks() == (remark,)
    presumptions.reset()
    assert presumptions.remarks() == ()


def test_an_error_is_the_one_who_asks() -> None:
    load = submit_of("transformers.core_model_loading")
    with Presumptions(), ThreadPoolExecutor(1) as pool:
        future = load(pool, [].pop)
        assert isinstance(future.exception(), IndexError)


def test_other_pools_are_left_alone() -> None:
    go = threading.Event()
    presumptions = Presumptions()
    with presumptions, ThreadPoolExecutor(1) as pool:
        future = submit_of("somebody.else")(pool, go.wait, WAIT)
        assert not future.done()  # it waits for this thread, and would for ever
        go.set()
        assert future.result()
    assert presumptions.remarks() == ()


def test_it_ends() -> None:
    load, go = submit_of("transformers.core_model_loading"), threading.Event()
    with Presumptions():
        pass
    with ThreadPoolExecutor(1) as pool:
        future = load(pool, go.wait, WAIT)
        go.set()
        assert future.result()


def test_generated_text_goes_on_as_long_as_it_may(pytester: pytest.Pytester, records: Records) -> None:
    pytest.importorskip("transformers")
    if torch.accelerator.is_available():
        pytest.skip("this machine has a card of its own")
    pytester.makepyfile(
        test_it="""
        import pytest, torch, transformers

        @pytest.mark.max_peak("1G")
        @pytest.mark.parametrize("sampled", [True, False])
        def test_it(card, sampled):
            sizes = dict(hidden_size=512, intermediate_size=512, num_hidden_layers=1, num_attention_heads=8)
            config = transformers.LlamaConfig(**sizes, vocab_size=2000, eos_token_id=7)
            model = transformers.LlamaForCausalLM(config).to(card.device)
            ids = torch.arange(40, device=card.device).reshape(2, 20) + 10
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=sampled, max_new_tokens=9)
            assert out.shape == (2, 29)
        """
    )
    arguments = ("-p", "no:cacheprovider", "--gpu-backend=simulated", "--memleak-json=out.json")
    pytester.runpytest_subprocess(*arguments).assert_outcomes(passed=2)
    for record in records().values():
        assert [note for note in record["notes"] if note.startswith("generated tokens")]
