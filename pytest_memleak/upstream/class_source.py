"""The source of a class, to be run again somewhere else: without the decorators that are not known there.

Programs that rewrite a model's classes take their source into a module of their own. Some decorators of transformers
only choose among kernels that give the same, or write documentation; where their names are not known, the class would
not even be made. They are left out, without a word in any log. Those that are known stay: then the kernel is used. Any
other unknown decorator may change what the class does, and is an error.
"""

from __future__ import annotations

import ast
import builtins
import io
from collections.abc import Mapping
from typing import Any

from pytest_memleak.errors import Inconclusive

DISPENSABLE = frozenset({"use_kernel_forward_from_hub", "auto_docstring", "use_experts_implementation"})
_Decorated = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class UnknownDecorator(Inconclusive):
    """A decorator that is not known where the class is to be, and that is not known to be dispensable."""


def resolvable(source: str, namespace: Mapping[str, Any]) -> str:
    """The same source, line for line, but for dispensable decorators that `namespace` cannot resolve."""
    tree = ast.parse(source)
    own = {name for node in tree.body for name in _bound(node)}
    gone: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, _Decorated):
            continue
        # A method's decorator may be made in the class itself: "@value.setter".
        around = own | {name for scope in _scopes(tree, node) for inner in scope.body for name in _bound(inner)}
        for decorator in node.decorator_list:
            path = _path(decorator)
            if path is None:
                raise UnknownDecorator(
                    f"a decorator of {node.name} (line {decorator.lineno}) is no plain name, and what it is cannot be "
                    "told: give it one"
                )
            if path[0] in around or _resolves(path, namespace):
                continue
            if path[-1] not in DISPENSABLE:
                raise UnknownDecorator(
                    f"@{'.'.join(path)} of {node.name} (line {decorator.lineno}) is not known where the class is to "
                    "be: import it there"
                )
            gone |= set(range(decorator.lineno, (decorator.end_lineno or decorator.lineno) + 1))
    lines = io.StringIO(source).readlines()  # as ast counts them: splitlines knows more ends of a line
    return "".join(line for number, line in enumerate(lines, start=1) if number not in gone)


def _scopes(tree: ast.Module, wanted: ast.AST) -> list[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The classes and functions around a node."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, _Decorated) and node is not wanted and any(inner is wanted for inner in ast.walk(node))
    ]


def _bound(node: ast.stmt) -> list[str]:
    """The names that a statement gives something to."""
    if isinstance(node, _Decorated):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
    return [one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)]


def _path(decorator: ast.expr) -> list[str] | None:
    """``["utils", "auto_docstring"]`` of ``@utils.auto_docstring(…)``; None for what is no name."""
    node = decorator
    while isinstance(node, ast.Call):
        node = node.func
    path: list[str] = []
    while isinstance(node, ast.Attribute):
        path.insert(0, node.attr)
        node = node.value
    return [node.id, *path] if isinstance(node, ast.Name) else None


def _resolves(path: list[str], namespace: Mapping[str, Any]) -> bool:
    if path[0] not in namespace:
        return len(path) == 1 and hasattr(builtins, path[0])
    found = namespace[path[0]]
    for name in path[1:]:
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True
