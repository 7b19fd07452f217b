"""Commands that the documentation shows: where they stand, and whether the real command line would take them."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cli import VERBS, app
from bench.settings.method_settings import parse_method
from methods.framework.errors import MoebenchError
from tests.support.places import ROOT

LANGUAGES = frozenset({"bash", "python", "yaml", "text"})
"""What a fenced block may say that it is; commands are ``bash``."""

OURS = frozenset({"sweeps", "docs", "bench", "methods", "analysis", "examples", "tests", "requirements"})
"""Folders of the repository: what a command names in them must be there."""

PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_-]*(\.\.\.)?|<.*>")
"""A word that the reader replaces."""

_FENCE = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`((?:moebench|make|python -m) [^`]+)`(?!`)")
_INDENTED = re.compile(r"^    ((?:moebench|make|python -m) .+)$", re.MULTILINE)


@dataclass(frozen=True)
class Shown:
    """A command as it is shown.

    Args:
        page: where it stands.
        words: the command, without comment.
    """

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{self.page}: {shlex.join(self.words)}"


def pages() -> list[Path]:
    """Return the pages that people read, without the reports that moebench writes."""
    docs = ROOT / "docs"
    named = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "bench/pocket/README.md", "bench/perf/README.md")]
    return [*named, *sorted(docs.glob("*.md")), *sorted(docs.glob("papers/*.md")), docs / "methods" / "index.md"]


def languages(text: str) -> list[str]:
    """Return what the fenced blocks of a page say that they are; an empty string where they do not."""
    return [match[2] for match in _FENCE.finditer(text)]


def commands(page: str, text: str) -> Iterator[Shown]:
    """Yield the commands of the ``bash`` blocks of a page, and those in blocks that are indented."""
    blocks = [match[3] for match in _FENCE.finditer(text) if match[2] == "bash"]
    blocks += _INDENTED.findall(_FENCE.sub("", text))
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                if words := tuple(shlex.split(part, comments=True)):
                    yield Shown(page, words)


def spans(page: str, text: str) -> Iterator[Shown]:
    """Yield the commands that stand within a sentence."""
    for match in _SPAN.finditer(_FENCE.sub("", text)):
        for part in match[1].split("&&"):
            yield Shown(page, tuple(shlex.split(part)))


def faults(shown: Shown, whole: bool = True) -> list[str]:
    """Return why a command would not be taken.

    Args:
        shown: the command.
        whole: whether all of it is there; within a sentence, arguments may be left out.
    """
    program, *words = shown.words
    if "=" in program and program.split("=")[0].isupper():
        return faults(Shown(shown.page, tuple(words)), whole)
    if program == "moebench":
        return _of_verb(words, whole) + _missing_files(words)
    if program == "make":
        return _of_make(words)
    if program == "python" and words[:1] == ["-m"]:
        return _of_module(words[1], words[2:]) + _missing_files(words[2:])
    if program == "python" and words and words[0].endswith(".py"):
        return _missing_files(words) or _unknown_options(words[1:], (ROOT / words[0]).read_text())
    if program == "pytest":
        return _missing_files(words)
    if program == "vllm" and words[:1] == ["serve"]:
        return _unknown_options(words, _engine_source())
    if shown.words == ("source", ".venv/bin/activate"):
        return []
    return [f"{program}: no class of commands that tests know; see tests/support/shown_commands.py"]


def _of_verb(words: Sequence[str], whole: bool) -> list[str]:
    verbs = {str(verb.name): verb for verb in VERBS}
    if not words or words[0] in {"--help", "VERB", *(name for one in app.params for name in one.opts)}:
        return []
    if words[0] not in verbs:
        return [f"moebench {words[0]}: no such verb"]
    command = verbs[words[0]].command()
    if not whole:
        if command.context_settings.get("ignore_unknown_options"):
            return []
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
        return [
            f"moebench {words[0]} {word}: no such option"
            for word in words[1:]
            if word.startswith("--") and word not in known
        ]
    try:
        command.make_context(words[0], list(words[1:]))
    except Exception as error:  # of the parser, or of our own that checks values
        told = error.format_message() if hasattr(error, "format_message") else str(error)
        return [f"moebench {words[0]}: {told}"]
    named = [words[at + 1] for at, word in enumerate(words[:-1]) if word == "--method"]
    return [reason for one in named if not PLACEHOLDER.fullmatch(one) for reason in _of_method(one)]


def _of_method(text: str) -> list[str]:
    try:
        parse_method(text).configured()
    except MoebenchError as error:
        return [str(error)]
    return []


def _of_make(words: Sequence[str]) -> list[str]:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return [f"make {word}: no such target" for word in words if "=" not in word and word not in targets]


def _of_module(name: str, words: Sequence[str]) -> list[str]:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return [f"python -m {name}: no such module"]
    folder = Path(spec.origin).parent
    own = [Path(spec.origin)] if spec.submodule_search_locations is None else sorted(folder.glob("*.py"))
    return _unknown_options(words, "\n".join(path.read_text() for path in own))


def _unknown_options(words: Sequence[str], source: str) -> list[str]:
    """Return the options that the source of a program names nowhere, with bars or as a name of Python."""
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    return [
        f"{option}: not an option"
        for option in options
        if option not in source and option[2:].replace("-", "_") not in source
    ]


def _missing_files(words: Sequence[str]) -> list[str]:
    """Return the words that name a file of the repository that is not there."""
    named = [word for word in words if "/" in word and word.split("/")[0] in OURS and ":" not in word]
    return [f"{word}: no such file" for word in named if not [*ROOT.glob(word)]]


def _engine_source() -> str:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    return (Path(spec.origin).parent / "engine" / "arg_utils.py").read_text()
