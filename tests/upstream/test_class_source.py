from __future__ import annotations

import inspect
import logging
import textwrap
import warnings
from typing import Any

import pytest
import torch

from pytest_memleak.upstream.class_source import UnknownDecorator, resolvable

SOURCE = textwrap.dedent(
    '''
    @use_experts_implementation
    @auto_docstring(
        custom_intro="""of
        several lines""",
    )
    class Experts(torch.nn.Module):
        # what stands here stays
        @torch.no_grad()
        @utils.use_kernel_forward_from_hub("Experts")
        def forward(self, value):
            return value + 1

        @property
        def two(self):
            return 2

        @two.setter
        def two(self, value):
            self.set = value

        @staticmethod
        def three():
            return 3
    '''
)


def test_what_cannot_be_resolved_and_is_dispensable_goes(caplog: pytest.LogCaptureFixture) -> None:
    namespace: dict[str, Any] = {"torch": torch}
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings():
        warnings.simplefilter("error")
        rewritten = resolvable(SOURCE, namespace)
    assert not caplog.records
    for gone in ("use_experts_implementation", "auto_docstring", "use_kernel_forward_from_hub", "several lines"):
        assert gone not in rewritten
    assert "# what stands here stays" in rewritten
    exec(rewritten, namespace)
    made = namespace["Experts"]()
    assert (made.forward(torch.ones(1)).item(), made.two, made.three()) == (2, 2, 3)


def test_what_can_be_resolved_is_used() -> None:
    used = []

    class utils:
        @staticmethod
        def use_kernel_forward_from_hub(name: str) -> Any:
            used.append(name)
            return lambda function: function

    namespace: dict[str, Any] = {"torch": torch, "utils": utils, "use_experts_implementation": lambda cls: cls}
    rewritten = resolvable(SOURCE, namespace)
    assert "use_experts_implementation" in rewritten
    assert "auto_docstring" not in rewritten
    exec(rewritten, namespace)
    assert used == ["Experts"]


def test_any_other_unknown_decorator_is_an_error() -> None:
    with pytest.raises(UnknownDecorator, match=r"@helpers\.cached of forward \(line 2\).*import it there"):
        resolvable("class A:\n    @helpers.cached(size=3)\n    def forward(self): ...\n", {})


def test_source_without_decorators_stays_as_it_is() -> None:
    plain = "class A:\n    def forward(self):\n        return 1  # one\n"
    assert resolvable(plain, {}) == plain


def test_classes_of_transformers() -> None:
    """As a program does that compiles them into a module of its own."""
    module: Any = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    for name in ("GptOssRMSNorm", "GptOssExperts", "GptOssMLP"):
        source = inspect.getsource(getattr(module, name))
        namespace: dict[str, Any] = {"torch": torch, "nn": torch.nn, **_types(module)}
        rewritten = resolvable(source, namespace)
        exec(rewritten, namespace)
        assert issubclass(namespace[name], torch.nn.Module)
        assert not any(line.lstrip().startswith("@use_") for line in rewritten.splitlines())


def _types(module: Any) -> dict[str, Any]:
    known = ("GptOssConfig", "PreTrainedConfig", "F", "ACT2FN", "Optional", "Union", "Callable")
    return {name: getattr(module, name) for name in known if hasattr(module, name)}


def test_lines_are_those_that_python_counts() -> None:
    source = "class A:\n    # a\x0cb\n    x = 1\n    @auto_docstring\n    def f(self): pass\n"
    assert resolvable(source, {}) == source.replace("    @auto_docstring\n", "")


@pytest.mark.parametrize("decorator", ['reg["x"]', "(nowhere.f if 1 else 2)"])
def test_a_decorator_without_a_name_is_not_passed_over(decorator: str) -> None:
    with pytest.raises(UnknownDecorator, match=r"a decorator of f \(line 2\) is no plain name"):
        resolvable(f"class A:\n    @{decorator}\n    def f(self): pass\n", {})
