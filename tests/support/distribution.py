"""Another distribution, as installed: a folder of modules with entry points, put on the import path."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, group: str, name: str, code: str) -> None:
    """Install a distribution that offers class ``Part`` of ``code`` as entry point ``name`` of ``group``."""
    module = f"another_{name}"
    (folder / f"{module}.py").write_text(textwrap.dedent(code))
    about = folder / f"{module}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}:Part\n")
    monkeypatch.syspath_prepend(str(folder))
