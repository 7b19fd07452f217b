"""Small expressions over config keys, as family files write them: ``head_dim or D // H``."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from functools import lru_cache
from types import CodeType
from typing import Any

from methods.framework.errors import ConfigError

_ALLOWED = (
    ast.Expression,
    ast.BoolOp,
    ast.And,
    ast.Or,
    ast.UnaryOp,
    ast.Not,
    ast.USub,
    ast.BinOp,
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.FloorDiv,
    ast.Mod,
    ast.Compare,
    ast.Eq,
    ast.NotEq,
    ast.Lt,
    ast.LtE,
    ast.Gt,
    ast.GtE,
    ast.In,
    ast.NotIn,
    ast.Is,
    ast.IsNot,
    ast.IfExp,
    ast.Name,
    ast.Load,
    ast.Constant,
    ast.List,
    ast.Tuple,
    ast.Subscript,
    ast.Call,
)


def _one(values: Any) -> Any:
    """Return the value that every entry of a list has, or a value that is no list.

    Raises:
        ValueError: entries differ, or there is none.
    """
    if not isinstance(values, list | tuple):
        return values
    if not values or any(value != values[0] for value in values):
        raise ValueError("entries of the list differ")
    return values[0]


_FUNCTIONS = {"one": _one, "sqrt": math.sqrt}


class _Names(dict[str, Any]):
    """Names of an expression; one that the config does not state is None."""

    def __missing__(self, key: str) -> None:
        return None


def names(values: Mapping[str, Any], *more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names for ``evaluate``; later mappings win, absent names are None."""
    merged = _Names(values)
    for mapping in more:
        merged.update(mapping)
    return merged


@lru_cache(maxsize=4096)
def parse(text: str) -> CodeType:
    """Compile ``text`` after checking that it holds only names, constants, arithmetic, comparison and logic.

    ``key[layer]`` is an entry of a list, ``one(key)`` the value that all of its entries have, ``sqrt(key)`` a root.

    Raises:
        ConfigError: not an expression, or it calls anything else, or reads attributes.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise ConfigError(f"{text!r} is not an expression: {error.msg}") from None
    for node in ast.walk(tree):
        called = isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS)
        if called or not isinstance(node, _ALLOWED):
            raise ConfigError(
                f"{text!r}: {type(node).__name__} is not allowed; use names, constants, + - * // %, comparisons, "
                "and/or/not, if-else, key[layer], one(key), sqrt(key)"
            )
    return compile(tree, "<family>", "eval")


def evaluate(text: str, known: dict[str, Any]) -> Any:
    """Return the value of ``text`` with the names of ``known`` (see ``names``).

    Raises:
        ConfigError: the values do not allow it, for instance arithmetic on a key that the config lacks.
    """
    code = parse(text)
    try:
        return eval(
            code, {"__builtins__": {}}, names(known, _FUNCTIONS) if _FUNCTIONS.keys() & code.co_names else known
        )
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        used = {name: str(known[name])[:60] for name in code.co_names if name not in _FUNCTIONS}
        raise ConfigError(f"cannot evaluate {text!r} with {used}: {error}") from None
