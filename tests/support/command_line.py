"""The command line in this process."""

from __future__ import annotations

import sys

import pytest

from bench.cli import main


def moebench(capsys: pytest.CaptureFixture[str], *arguments: object, columns: int = 200) -> tuple[int, str]:
    """Return the exit status of ``moebench ARGUMENTS`` and all that it printed, on a terminal of that many columns."""
    capsys.readouterr()
    status: int | str | None = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["moebench", *map(str, arguments)])
        patch.setenv("COLUMNS", str(columns))
        try:
            main()
        except SystemExit as end:
            status = end.code
    told = capsys.readouterr()
    return int(status or 0), told.out + told.err
