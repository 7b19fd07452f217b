"""Folders that are built once for all tests of a session, also where several processes run them, and then only read."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

PLACE = "MOEBENCH_TEST_FOLDERS"
"""Environment variable with the folder that all processes of a session share; child processes of a test see it too."""


def built_once(name: str, build: Callable[[Path], object]) -> Path:
    """Return the folder ``name``, for which ``build`` is called with an empty folder where nobody built it before.

    Its files are read-only, and what is changed in it all the same fails the session (see ``changed``).
    """
    root = Path(os.environ[PLACE])
    final = root / name
    if final.exists():
        return final
    root.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    build(part)
    for file in _files(part):
        file.chmod(0o444)
    stamp = root / f"{part.name}.json"
    stamp.write_text(json.dumps({"name": name, "files": _stamps(part)}))
    try:
        part.rename(final)
    except OSError:  # another process was faster
        shutil.rmtree(part)
        stamp.unlink()
    return final


def changed(root: Path) -> list[str]:
    """Return the names of the shared folders in ``root`` that hold something else than what was built."""
    stamps = (json.loads(stamp.read_text()) for stamp in root.glob(".*.json"))
    return sorted(one["name"] for one in stamps if one["files"] != _stamps(root / one["name"]))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Return size and time of the last change of every file."""
    return {str(f.relative_to(folder)): [f.stat().st_size, f.stat().st_mtime_ns] for f in _files(folder)}
