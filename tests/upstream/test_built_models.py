from __future__ import annotations

import copy
import gc
import inspect
import threading
import weakref
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn

from pytest_memleak.budget.model_sizes import ModelSizes
from pytest_memleak.errors import Inconclusive
from pytest_memleak.upstream.loads import ModelObserver
from tests.upstream.addresses import made_where_one_was


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(width, width, bias=False)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(width, width, bias=False))


def fp16(models: list[ModelSizes]) -> list[int]:
    return [sizes.term("fp16_size").bytes for sizes in models]


def here() -> int:
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def test_a_built_model_is_one_root_named_by_class_and_line() -> None:
    with ModelObserver() as observer:
        model, line = Net(), here()
    assert fp16(observer.models()) == [64]
    assert observer.models()[0].title == f"Net (built at tests/upstream/test_built_models.py:{line})"
    assert isinstance(model, Net)


def test_a_model_that_is_gone_before_the_end_is_remembered_as_it_was() -> None:
    with ModelObserver() as observer:
        model = Net()
        model.first = nn.Linear(4, 8, bias=False)
        del model
        assert fp16(observer.models()) == [96]
    assert fp16(observer.models()) == [96]


def test_a_model_that_dies_in_a_cycle_is_remembered() -> None:
    with ModelObserver() as observer:
        model = Net()
        model.__dict__["itself"] = model
        del model
        gc.collect()
        assert fp16(observer.models()) == [64]


@pytest.mark.parametrize("back", [False, True], ids=["itself", "its-part"])
def test_a_wrapper_that_dies_in_a_cycle_is_remembered_though_its_part_ends_before_it(back: bool) -> None:
    with ModelObserver() as observer:
        part = Net()  # the older one, and so the first that a collection ends
        wrapper = nn.Sequential(part)
        (part if back else wrapper).__dict__["wrapper"] = wrapper
        del part, wrapper
        gc.collect()
    assert [sizes.title.split()[0] for sizes in observer.models()] == ["Sequential"]
    assert fp16(observer.models()) == [64]


def test_a_model_is_seen_where_one_was_whose_end_nobody_saw() -> None:
    class Hidden(nn.Linear):
        def __del__(self) -> None:
            """Without that of its base."""

    with ModelObserver() as observer:
        model = made_where_one_was(lambda: Hidden(4, 4), lambda: nn.Linear(2, 2))
        assert [found for _, found in observer.living()] == [model]


def test_several_models_are_told_apart_in_order() -> None:
    with ModelObserver() as observer:
        one, two = Net(2), Net(3)
        del one
        assert isinstance(two, Net)
    assert fp16(observer.models()) == [16, 36]


def test_modules_without_parameters_and_parts_of_others_do_not_count() -> None:
    with ModelObserver() as observer:
        loss, activation = nn.CrossEntropyLoss(), nn.ReLU()
        part = nn.Linear(3, 3)
        whole = nn.ModuleDict({"part": part})
        nn.Sequential()
    assert [sizes.title.split()[0] for sizes in observer.models()] == ["ModuleDict"]
    assert len({id(module) for module in (loss, activation, whole)}) == 3


def test_what_was_built_before_is_not_the_tests_even_where_the_test_adds_to_it() -> None:
    wider = Net()
    with ModelObserver() as observer:
        wider.adapter = nn.Linear(4, 2)
        wider.register_parameter("scale", nn.Parameter(torch.zeros(1)))
        copy.deepcopy(wider)
    assert observer.models() == []


def test_a_wrapper_counts_instead_of_what_it_wraps() -> None:
    with ModelObserver() as observer:
        wrapper = nn.DataParallel(Net())
        assert [sizes.title.split()[0] for sizes in observer.models()] == ["DataParallel"]
        del wrapper


def test_a_model_on_meta_is_a_plan_and_counts_only_alone() -> None:
    with ModelObserver() as observer:
        with torch.device("meta"):
            plan = Net(1000)
        assert fp16(observer.models()) == [4_000_000]
        real = Net()
        assert fp16(observer.models()) == [64]
        del plan
        assert fp16(observer.models()) == [64]
        del real


def test_models_of_other_threads_are_seen() -> None:
    with ModelObserver() as observer:
        threads = [threading.Thread(target=Net, args=[width]) for width in (2, 3, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(fp16(observer.models())) == [16, 36, 64]


def test_nothing_is_kept_alive_and_no_tensor_gets_a_weak_reference() -> None:
    with ModelObserver() as observer:
        model = Net()
        parameter = model.first.weight
        observer.models()
        assert weakref.getweakrefcount(parameter) == 0
        alive = weakref.ref(model)
        del model
        assert alive() is None
        assert all(parameter is not thing for thing in gc.get_referrers(parameter))


def test_parameters_can_still_be_swapped() -> None:
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with ModelObserver() as observer:
            model = Net()
            observer.models()
            model.half()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    assert observer.models()[0].term("final_size").bytes == 64


def test_a_model_that_failed_while_it_was_built_does_not_disturb() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            raise ValueError("before super().__init__()")

    class Late(Net):
        def __init__(self) -> None:
            super().__init__()
            raise ValueError("half built")

    with ModelObserver() as observer:
        for kind in (Early, Late):
            with pytest.raises(ValueError):
                kind()
        gc.collect()
        assert fp16(observer.models()) == [64]


def test_a_model_of_a_fake_mode_is_understood() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with ModelObserver() as observer:
        with FakeTensorMode():
            model = Net(1000)
            del model
    assert fp16(observer.models()) == [4_000_000]


def test_a_module_with_an_end_of_its_own_keeps_it() -> None:
    ended: list[str] = []

    class Ending(Net):
        def __del__(self) -> None:
            ended.append("own")
            getattr(super(), "__del__", lambda: None)()

    with ModelObserver() as observer:
        Ending()
    assert ended == ["own"]
    assert fp16(observer.models()) == [64]


def test_what_cannot_be_looked_at_is_inconclusive_and_not_lost() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

        @property
        def all_tied_weights_keys(self) -> Any:
            raise RuntimeError("not now")

    with ModelObserver() as observer:
        Odd()
    with pytest.raises(Inconclusive, match="looking at it raised RuntimeError\\('not now'\\)"):
        observer.models()[0].term("fp16_size")


def test_observers_nest_and_leave_torch_as_they_found_it() -> None:
    before = dict(vars(nn.Module))
    with ModelObserver() as outer:
        first = Net(2)
        with ModelObserver() as inner:
            second = Net(3)
        third = Net(4)
    assert fp16(outer.models()) == [16 // 2 * 2, 36, 64]
    assert fp16(inner.models()) == [36]
    assert dict(vars(nn.Module)) == before
    assert not nn.modules.module._global_module_registration_hooks
    assert len({id(model) for model in (first, second, third)}) == 3


def test_outside_of_a_window_nothing_is_seen() -> None:
    with ModelObserver() as observer:
        pass
    Net()
    assert observer.models() == []
