"""A verb of the command line, of which only name and sentence are known until it is called."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand
from typer.main import get_command

from methods.framework.errors import ConfigError

KEPT = "nothing unfinished was left under its name; the same command starts again"
"""Said on Ctrl-C by verbs whose file states no ``KEPT`` of its own."""


class Verb(TyperCommand):
    """A command whose file ``bench/commands/<name>_command.py`` is imported when it is called, so that help is instant."""

    def __init__(self, name: str, help: str, *, passes_on: bool = False) -> None:
        """Name a verb.

        Args:
            name: of the command, of its file (with ``_command``) and of its function there.
            help: what it does: one line, and after an empty line whatever else its own help says.
            passes_on: whether options that it does not know are handed on instead of refused.
        """
        self._settings = {"allow_extra_args": True, "ignore_unknown_options": True} if passes_on else {}
        super().__init__(name, help=help)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Import the verb's file and let the command there read ``args``.

        Args:
            info_name: how the verb was called, for its help.
            args: words behind it.
            parent: context of the command line as a whole.
            extra: settings of the context, handed on.
        """
        return self.command().make_context(info_name, args, parent, **extra)

    def command(self) -> Any:
        """Return the command of the verb's file, with its options."""
        module = importlib.import_module(f"bench.commands.{self.name}_command")
        app = typer.Typer(add_completion=False)
        app.command(self.name, help=self.help, context_settings=self._settings)(getattr(module, str(self.name)))
        command = get_command(app)
        _refuse_repeated(command)
        if command.callback is not None:
            command.callback = _interruptible(command.callback, getattr(module, "KEPT", KEPT))
        return command


def _refuse_repeated(command: Any) -> None:
    """Let ``command`` refuse an option of one value that is given again, of which only the last would count."""
    make_parser = command.make_parser

    def made(context: Any) -> Any:
        parser = make_parser(context)
        parse_args = parser.parse_args

        def parsed(args: list[str]) -> Any:
            options, rest, order = parse_args(args=args)
            for option in dict.fromkeys(order):
                times = order.count(option)
                if times > 1 and option.param_type_name == "option" and not option.multiple:
                    raise ConfigError(
                        f"{option.opts[0]} is given {times} times, and takes one value; give it once (see --help for options "
                        "that take several)"
                    )
            return options, rest, order

        parser.parse_args = parsed
        return parser

    command.make_parser = made


def _interruptible(function: Callable[..., Any], kept: str) -> Callable[..., Any]:
    """Return ``function``, which on Ctrl-C says what is ``kept`` and how to go on."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except KeyboardInterrupt:
            print(f"\ninterrupted: {kept}", file=sys.stderr)
            raise typer.Exit(130) from None

    return call
