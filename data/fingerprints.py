"""A hash of what a computation is: its code, whatever commit it is in, and its parameters."""

import ast
import hashlib
import inspect
import json
import textwrap
import threading
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

# CPython 3.11 counts how deep it is in a syntax tree for all threads together, and stops when that does not add up.
_ONE_PARSES = threading.Lock()


def fingerprint(*functions: Callable[..., Any], **parameters: Any) -> str:
    """Hash of the functions, all functions of their module that they call, and the parameters they are run with.

    Comments and layout do not count. Constants of the module do not either: pass those that matter as parameters.
    """
    reached: dict[str, FunctionType] = {}
    waiting = [function for function in functions if isinstance(function, FunctionType)]
    while waiting:
        function = waiting.pop()
        if function.__qualname__ not in reached:
            reached[function.__qualname__] = function
            waiting += _called(function)
    sources = [ast.unparse(_parsed(textwrap.dedent(inspect.getsource(reached[name])))) for name in sorted(reached)]
    return hashlib.sha256(json.dumps([sources, parameters], sort_keys=True).encode()).hexdigest()[:16]


def fingerprint_of_modules(*modules: ModuleType) -> str:
    """Hash of all code of some modules, constants too. Comments, docstrings and layout do not count."""
    sources = [_without_docstrings(inspect.getsource(module)) for module in modules]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:16]


def _parsed(source: str) -> ast.Module:
    with _ONE_PARSES:
        return ast.parse(source)


def _without_docstrings(source: str) -> str:
    tree = _parsed(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [each for each in node.body if not _is_text(each)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _called(function: FunctionType) -> list[FunctionType]:
    """Functions of the same module that the function names."""
    named = [function.__globals__.get(name) for name in _names(function.__code__)]
    return [each for each in named if isinstance(each, FunctionType) and each.__module__ == function.__module__]


def _names(code: CodeType) -> Iterator[str]:
    """Global names that the code uses, also inside of what it defines."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
