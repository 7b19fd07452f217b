"""What the verbs draw: bars on a terminal, a line without one, and how a command ends."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bench.commands import printing, recover_command
from bench.commands.printing import bar, print_ending
from bench.commands.recover_command import loss_bar


def test_without_a_terminal_a_stage_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("calibrate [all]") as progress:
        for done in range(3):
            progress(done, 3)
    with loss_bar("lora") as told:
        told(1, 2, 3.5)
    printed = capsys.readouterr()
    assert (printed.out, printed.err.splitlines()) == ("", ["calibrate [all] ...", "lora ..."])


def test_on_a_terminal_the_share_done_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=StringIO(), force_terminal=True, width=80)
    for module in (printing, recover_command):
        monkeypatch.setattr(module, "console", lambda stderr=False: terminal)
    with bar("calibrate") as progress:
        progress(2, 6)
    with loss_bar("lora") as told:
        told(1, 4, 3.5)
    drawn = terminal.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert "2/6" in drawn and "1/4" in drawn and "lora loss 3.5000" in drawn


def test_the_end_tells_places_and_what_to_type_next() -> None:
    console = Console(file=StringIO(), record=True, width=40)
    folder = Path("a folder/[x]/" + "long/" * 12)
    print_ending(console, {"records": folder, "log": "l"}, [("moebench report runs", "writes it"), ("b", "c")])
    assert console.export_text().splitlines() == [
        "",
        f"records  {folder}",
        "log      l",
        "next: `moebench report runs` writes it",
        "      `b` c",
    ], "nothing is broken or read as markup"
