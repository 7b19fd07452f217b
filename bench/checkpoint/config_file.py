"""The ``config.json`` of a checkpoint, read strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from methods.framework.errors import CheckpointError


def read_config(path: Path) -> dict[str, Any]:
    """Return the parsed ``config.json`` of a folder.

    Raises:
        CheckpointError: missing, or not a JSON object.
    """
    try:
        config = json.loads((path / "config.json").read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} has no config.json; name the folder of a Hugging Face checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / 'config.json'} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path / 'config.json'} holds a {type(config).__name__}, not a JSON object")
    return config
