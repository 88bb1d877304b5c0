"""Which looks count, of models that end seen and unseen."""

from __future__ import annotations

from torch import nn

from pytest_memleak.upstream.loads import Seen
from pytest_memleak.values.looks import Looks
from tests.upstream.addresses import made_where_one_was


def width(model: nn.Module) -> int:
    return int(next(model.parameters()).numel())


def test_the_last_look_at_a_model_counts() -> None:
    looks = Looks(width, at_loads=True)
    model, seen = nn.Linear(2, 1, bias=False), Seen(3, "Loaded", (3,), loaded=True)
    looks.model_loaded(seen, model)
    model.weight = nn.Parameter(model.weight.repeat(1, 2))
    looks.body_ended([(seen, model)])
    model.weight = nn.Parameter(model.weight.repeat(1, 2))
    looks.model_ends(seen, model)
    assert [(look.found, look.when) for look in looks.all()] == [(8, "when it ended")]


def test_a_look_at_a_model_whose_end_nobody_saw_stays_where_another_model_takes_its_address() -> None:
    looks = Looks(width, at_loads=True)
    order = iter(range(1000))

    def loaded() -> nn.Module:
        model = nn.Linear(7, 1, bias=False)
        number = next(order)
        looks.model_loaded(Seen(number, "Loaded", (number,), loaded=True), model)
        return model

    built = made_where_one_was(loaded, lambda: nn.Linear(2, 1, bias=False))
    looks.body_ended([(Seen(1000, "Built"), built)])
    assert [look.found for look in looks.all()][-2:] == [7, 2]
