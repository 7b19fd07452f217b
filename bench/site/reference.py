"""Reference pages: every verb of the command line with its options, and the functions and classes for authors."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from bench.cli import VERBS
from bench.site.committed_results import markdown


def command_page() -> str:
    """Return the page of all verbs, from the command line itself."""
    return "\n".join(["# Every verb and option", "", *(line for verb in VERBS for line in _verb(verb.command()))])


def _verb(command: Any) -> Iterator[str]:
    context = command.make_context(f"moebench {command.name}", [], resilient_parsing=True)
    yield from (f"## {command.name}", "", (command.help or "").strip(), "")
    yield from ("```text", " ".join([f"moebench {command.name}", *command.collect_usage_pieces(context)]), "```", "")
    rows = [["option", "default", "what it is"]]
    for option in command.params:
        if option.hidden or "--help" in option.opts:
            continue
        names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
        default = "" if option.default in (None, False, (), []) or callable(option.default) else f"`{option.default}`"
        rows.append([names, default, " ".join((option.help or "").split())])
    if rows[1:]:
        yield from (*markdown(rows), "")


def library_page() -> str:
    """Return the page of what ``bench`` and ``methods`` offer, which Sphinx fills from the docstrings."""
    parts = ["# Reference of the library", ""]
    for package, heading in (("bench", "For users"), ("methods", "For authors of methods")):
        offers = importlib.import_module(package)
        parts += [f"## {heading}", "", f"What `from {package} import ...` offers.", ""]
        parts += [line for name in offers.__all__ for line in _directive(package, name, getattr(offers, name))]
    return "\n".join(parts)


def _directive(package: str, name: str, found: object) -> Iterator[str]:
    """Yield the directive that documents an object under the name by which it is imported."""
    if inspect.isclass(found):
        options = [
            ":members:",
            ":undoc-members:",
            ":exclude-members: model_config, model_fields, model_computed_fields",
        ]
        yield from ("```{eval-rst}", f".. autoclass:: {package}.{name}", *(f"   {one}" for one in options), "```", "")
    elif inspect.isfunction(found):
        yield from ("```{eval-rst}", f".. autofunction:: {package}.{name}", "```", "")
    else:
        yield from (f"`{package}.{name}`: `{found}`", "")
