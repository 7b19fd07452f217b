"""``moebench methods``: every method in one line, or one of them in full."""

from __future__ import annotations

import re
import sys
from inspect import cleandoc
from typing import Annotated

import typer
from rich.console import OverflowMethod
from rich.markup import escape
from rich.table import Table

from bench.commands.options import method_names
from bench.commands.printing import console
from methods.framework.description import facts, knobs, stages, summary
from methods.registry import method_class, names

_BROKEN_LINE = re.compile(r"(?<!\n)\n(?!\n|\s*(?:\d+\.|-) )\s*")
"""Where a paragraph of a docstring goes on in the next line, which a terminal of another width breaks elsewhere."""


def methods(
    name: Annotated[
        str | None, typer.Argument(help="name of a method; without it, all are listed", autocompletion=method_names)
    ] = None,
) -> None:
    """Print one line for each method, or everything about one."""
    if name is None:
        list_methods()
    else:
        show_method(name)


def list_methods() -> None:
    """Print name, stages and first sentence of every method; a terminal cuts lines to its width, a file gets them whole."""
    out = console()
    rows = [(cls.name, stages(cls), summary(cls)) for cls in map(method_class, names())]
    name, stage = (max(len(row[column]) for row in rows) for column in (0, 1))
    for row in rows:
        line = f"{row[0]:<{name}}  {row[1]:<{stage}}  {row[2]}"
        overflow: OverflowMethod = "ellipsis" if out.is_terminal else "ignore"
        out.print(line, markup=False, highlight=False, no_wrap=True, overflow=overflow, crop=out.is_terminal)


def show_method(name: str) -> None:
    """Print everything about method ``name``.

    Raises:
        UnknownNameError: no such method; the closest name is given.
    """
    cls, out = method_class(name), console()
    out.print(f"[bold]{escape(cls.name)}[/]  {escape(cls.title)}\n", highlight=False)
    for text in filter(None, (sys.modules[cls.__module__].__doc__, cls.__doc__)):
        out.print(_BROKEN_LINE.sub(" ", cleandoc(text)) + "\n", markup=False, highlight=False)
    for fact, value in facts(cls).items():
        out.print(f"{fact:<8} {value}", markup=False, highlight=False)
    table = Table("knob", "values", "default", "what it is")
    for knob in knobs(cls):
        table.add_row(*map(escape, (knob.name, knob.values, knob.default, knob.meaning)))
    out.print()
    out.print(table)
