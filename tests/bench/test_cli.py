"""The command line as a whole: its verbs, what starting it imports, and how it fails."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from bench.cli import VERBS, app
from bench.commands.verb import Verb
from tests.support.command_line import moebench

LIGHT = (
    ["--help"],
    ["methods"],
    ["methods", "moe_i2"],
    ["inspect", "pocket-mixtral"],
    ["cost", "--help"],
    ["run", "--help"],
    ["time", "--help"],
    ["recover", "--help"],
    ["plan", "--help"],
)
HEAVY = ("torch", "scipy", "transformers", "lm_eval", "optuna", "pandas", "matplotlib")
CHILD = """
import contextlib, io, json, sys
import bench, methods
found = {}
for arguments in json.loads(sys.argv[1]):
    from bench.cli import main
    sys.argv = ["moebench", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as told:
        try:
            main()
        except SystemExit as end:
            assert not end.code, told.getvalue()
    assert told.getvalue()
    found[" ".join(arguments)] = [name for name in HEAVY if name in sys.modules]
    for name in [name for name in sys.modules if name.split(".")[0] in HEAVY]:
        del sys.modules[name]
print(json.dumps(found))
"""


def test_listing_and_looking_import_nothing_heavy() -> None:
    code = f"HEAVY = {HEAVY!r}\n{CHILD}"
    child = subprocess.run(
        [sys.executable, "-c", code, json.dumps(LIGHT)], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) == {" ".join(arguments): [] for arguments in LIGHT}


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_has_its_file_and_its_help(verb: object, capsys: pytest.CaptureFixture[str]) -> None:
    name = str(verb.name)  # type: ignore[attr-defined]  # attributes of typer's commands
    assert inspect.isfunction(getattr(import_module(f"bench.commands.{name}_command"), name))
    status, told = moebench(capsys, name, "--help")
    assert status == 0
    assert verb.help.split("\n")[0] in told  # type: ignore[attr-defined]  # attributes of typer's commands


def parameters(command: Any) -> Iterator[tuple[str, Any]]:
    """Yield every argument and option of a command and of those below it, with the name of its command."""
    whole = command.command() if isinstance(command, Verb) else command
    yield from ((str(command.name), parameter) for parameter in whole.params)
    for below in getattr(whole, "commands", {}).values():
        yield from parameters(below)


def test_every_option_and_argument_is_explained() -> None:
    found = list(parameters(app))
    assert {name for name, _ in found} == {"moebench", *(str(verb.name) for verb in VERBS)}
    unexplained = [f"{name} {' '.join(one.opts)}" for name, one in found if not (one.help or "").strip()]
    assert unexplained == []


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("moebench meth", ["methods"]),
        ("moebench methods sub", ["sub_moe"]),
        ("moebench run --method sub", ["sub_moe"]),
        ("moebench run --seque", ["--sequences"]),
    ],
)
def test_shells_complete_verbs_options_and_methods(
    words: str, wanted: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_MOEBENCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    status, told = moebench(capsys)
    assert (status, told.split()) == (0, wanted)


def test_no_file_of_a_verb_is_left_out() -> None:
    files = {path.stem for path in (Path(__file__).parents[2] / "bench" / "commands").glob("*_command.py")}
    assert files == {f"{verb.name}_command" for verb in VERBS}


def test_an_unknown_verb_gets_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    status, told = moebench(capsys, "inspct", "pocket-mixtral")
    assert status == 2
    assert "Did you mean 'inspect'?" in told


def test_an_error_of_the_user_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    status, told = moebench(capsys, "inspect", "/no/such/folder")
    assert status == 1
    assert told.startswith("error: there is no folder /no/such/folder") and "Traceback" not in told


def test_names_that_no_file_can_have_and_marks_in_messages_are_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    status, told = moebench(capsys, "report", "/tmp/" + "n" * 300)
    assert status == 1 and "File name too long" in told and "Traceback" not in told
    status, told = moebench(capsys, "inspect", "./no[/such]folder")
    assert status == 1 and "no[/such]folder" in told
