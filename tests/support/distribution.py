"""Another distribution, as installed: a folder of modules with entry points, put on the import path."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, group: str, name: str, code: str) -> None:
    """Install a distribution that offers class ``Part`` of ``code`` as entry point ``name`` of ``group``."""
    module = f"another_{name}"
    (folder / f"{module}.py").write_text(textwrap.dedent(code))
    announce(folder, group, name, f"{module}:Part")
    monkeypatch.syspath_prepend(str(folder))


def announce(folder: Path, group: str, name: str, target: str) -> Path:
    """Write what an installed distribution leaves beside its modules in ``folder``, which is returned.

    Args:
        folder: that the module of ``target`` lies in.
        group: group of its one entry point.
        name: of the entry point.
        target: what it names, ``module`` or ``module:attribute``.
    """
    distribution = target.partition(":")[0]
    about = folder / f"{distribution}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
    return folder
