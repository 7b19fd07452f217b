"""The ``config.json`` of a checkpoint, read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from methods.framework.errors import CheckpointError
from methods.framework.outside import an_object, read_json


def read_config(path: Path) -> dict[str, Any]:
    """Return the parsed ``config.json`` of a folder.

    Raises:
        CheckpointError: missing, not readable, or not a JSON object.
    """
    file = path / "config.json"
    if not file.exists():
        raise CheckpointError(f"{path} has no config.json; name the folder of a Hugging Face checkpoint")
    return an_object(read_json(file, CheckpointError, infinite=True), str(file), CheckpointError)
