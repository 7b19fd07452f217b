"""Names that a package offers and imports when they are first used, so that importing the package costs nothing."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for ``package``, whose names are those that its file imports for type checkers.

    So the block ``if TYPE_CHECKING:`` is the only list of where they come from; the file is read when the first is used.
    """
    module = sys.modules[package]

    def get(name: str) -> Any:
        home = _homes(Path(str(module.__file__))).get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home), name)
        setattr(module, name, value)
        return value

    return get, lambda: sorted({*vars(module), *_homes(Path(str(module.__file__)))})


@cache
def _homes(file: Path) -> Mapping[str, str]:
    """Return the module of each name that ``file`` imports under ``if TYPE_CHECKING:``."""
    return {
        alias.name: str(statement.module)
        for block in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
