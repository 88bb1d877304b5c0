"""Which model a test's limits are about: the one it names, else the watched one, else what it loaded or built."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pytest_memleak.budget.model_sizes import ModelSizes, sizes_of
from pytest_memleak.budget.term import Term
from pytest_memleak.budget.which_model import which_model
from pytest_memleak.errors import BadInput, Inconclusive
from pytest_memleak.plan import Budget, Plan
from pytest_memleak.upstream import watched

if TYPE_CHECKING:
    from pytest_memleak.upstream.loads import ModelObserver

_FIXTURE = "fixture:"


class ModelNames:
    def __init__(
        self,
        item: pytest.Item,
        plan: Plan,
        observer: ModelObserver | None,
        watched_by: Mapping[pytest.FixtureDef[Any], watched.Scope],
    ) -> None:
        self._item = item
        self._plan = plan
        self._observer = observer
        self._watched_by = watched_by
        self._fixtures: dict[str, ModelSizes | str] = {}
        """By ``model=``: the sizes of that fixture's value, or why there are none."""
        self.offer = ""
        """What is likely to be meant where no model was seen."""
        self._undo = contextlib.ExitStack()

    def begin(self) -> None:
        self._undo.enter_context(watched.scope(self._scopes_of_its_fixtures))

    def end(self) -> None:
        self._undo.close()

    def run_begins(self) -> None:
        """One more run of the same test: it will watch its own models anew."""
        self.end()
        self.begin()

    def body_begins(self) -> None:
        """The fixtures have their values now; the body may quantize or delete them."""
        self.offer = self._likely_meant()
        for budget in self._plan.budgets:
            model = getattr(budget, "model", None)
            if isinstance(model, str) and model.startswith(_FIXTURE):
                self._fixtures[model] = self._of_fixture(model)

    def term(self, budget: Budget, name: str) -> Term:
        named = getattr(budget, "model", None)
        if isinstance(named, str) and named in self._fixtures:
            found = self._fixtures[named]
            if isinstance(found, str):
                raise Inconclusive(found)
            return found.term(name)
        seen = watched.watched() or (self._observer.models() if self._observer else [])
        return which_model(named, seen, self.offer).term(name)

    def expected(self, budget: Budget, name: str) -> Term:
        """What a name is likely to mean, of a model that is being loaded or was not chosen yet.

        For a look at what happens meanwhile, and no verdict rests on it. Of several models, it is the largest.
        """
        seen = self._observer.expected() or self._observer.models() if self._observer else []
        terms = [sizes.terms[name] for sizes in seen if name in sizes.terms]
        if not terms:
            raise Inconclusive("no model is there yet")
        return max(terms, key=lambda term: term.bytes)

    def _scopes_of_its_fixtures(self) -> list[watched.Scope]:
        definitions = getattr(getattr(self._item, "_fixtureinfo", None), "name2fixturedefs", {}).values()
        return [self._watched_by[one] for some in definitions for one in some if one in self._watched_by]

    def _of_fixture(self, model: str) -> ModelSizes | str:
        name = model.removeprefix(_FIXTURE)
        values = getattr(self._item, "funcargs", {})
        if name not in values:
            return f"model={model!r}: the test uses no fixture {name!r}; it uses {', '.join(sorted(values)) or 'none'}"
        try:
            return sizes_of(values[name])
        except (BadInput, Inconclusive) as error:
            return f"model={model!r}: {error}"

    def _likely_meant(self) -> str:
        """A wider fixture's model is not the test's own: it is the likeliest one to be meant."""
        for name, value in getattr(self._item, "funcargs", {}).items():
            if isinstance(value, torch.nn.Module):
                return f'; did you mean model="{_FIXTURE}{name}"?'
        return ""
