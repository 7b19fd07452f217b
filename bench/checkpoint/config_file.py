"""The ``config.json`` of a checkpoint, read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from methods.framework.errors import CheckpointError
from methods.framework.outside import an_object, read_json

MODELOPT_FILE = "hf_quant_config.json"
"""Where older versions of ModelOpt state how a checkpoint is quantised, and nothing of it in ``config.json``."""
_FP8_CACHE = {"dynamic": False, "num_bits": 8, "type": "float"}


def read_config(path: Path) -> dict[str, Any]:
    """Return the parsed ``config.json`` of a folder, with what ``MODELOPT_FILE`` states in the form that newer versions give it.

    Raises:
        CheckpointError: missing, not readable, or not a JSON object.
    """
    file = path / "config.json"
    if not file.exists():
        raise CheckpointError(f"{path} has no config.json; name the folder of a Hugging Face checkpoint")
    config = an_object(read_json(file, CheckpointError, infinite=True), str(file), CheckpointError)
    beside = path / MODELOPT_FILE
    if config.get("quantization_config") is None and beside.exists():
        config["quantization_config"] = _newer(
            an_object(read_json(beside, CheckpointError), str(beside), CheckpointError), beside
        )
    return config


def _newer(document: dict[str, Any], file: Path) -> dict[str, Any]:
    stated = an_object(document.get("quantization"), f"quantization of {file}", CheckpointError)
    cache = {"kv_cache_scheme": dict(_FP8_CACHE)} if stated.get("kv_cache_quant_algo") == "FP8" else {}
    kept: dict[str, Any] = {key: stated[key] for key in ("quant_algo", "group_size") if key in stated}
    return {"quant_method": "modelopt", **kept, **cache, "ignore": stated.get("exclude_modules") or []}
