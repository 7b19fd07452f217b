"""What a timing does, and which checkpoints it can be done on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from methods.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class TimingProtocol:
    """What one timing does; the whole of it is stored with the numbers."""

    repeats: int = 5  # pairs of measurements, at least 5
    extra: int = 10  # further pairs, one at a time, while the row is noisy; none with residency "one"
    warmup: int = 1  # batches of each model that are run and not counted
    batch: int = 4  # sequences
    prompt: int = 128  # tokens of each prompt, random
    generate: int = 32  # tokens generated for each prompt after the first one
    rounds: int = 1  # batches summed into one repeat: more for models so small that a batch takes milliseconds
    dtype: str = "auto"  # of weights and activations, as vLLM names it
    seed: int = 0  # of the prompts and of the bootstrap
    residency: Literal["both", "one"] = "both"  # "one": a fresh process for each repeat, where both do not fit
    kv_cache_bytes: int = 1 << 28  # the same for both models, so that memory differs by the model alone
    threads: int | None = None  # OpenMP threads of the worker, None for the current setting
    noise: float = 0.10  # a ratio whose interval is wider than this share of it marks the row as noisy, see `time`
    start_seconds: float = 600.0  # limit for starting a model
    run_seconds: float = 600.0  # limit for one batch

    def __post_init__(self) -> None:
        """Refuse settings that cannot give a fair number.

        Raises:
            ConfigError: fewer than five repeats, or a length below one.
        """
        if self.repeats < 5:
            raise ConfigError(f"timing needs at least 5 repeats for an interval, got {self.repeats}; raise repeats")
        for name in ("batch", "prompt", "generate", "rounds", "warmup"):
            if getattr(self, name) < 1:
                raise ConfigError(f"timing setting {name} must be at least 1, got {getattr(self, name)}")
        if self.residency not in ("both", "one"):
            raise ConfigError(f"timing setting residency must be 'both' or 'one', got {self.residency!r}")


def unservable(path: Path) -> str | None:
    """Return why vLLM cannot serve the checkpoint at ``path``, or None; reads only ``config.json``.

    Checkpoints whose layers differ are served by the plug-in (``bench.serving.plugin``), the others by vLLM's own classes.

    Raises:
        CheckpointError: there is no readable ``config.json``.
    """
    from bench.compressed_config import PREFIX
    from bench.serving.plugin import STOCK

    config = read_config(path)
    architecture = str((config.get("architectures") or [""])[0])
    if architecture.startswith(PREFIX) and architecture.removeprefix(PREFIX) not in STOCK:
        return f"the plug-in has no class {architecture}; it serves {', '.join(STOCK)} with layers that differ"
    if config.get("per_layer_config") and not architecture.startswith(PREFIX):
        return f"config.json states per_layer_config, but names the stock class {architecture}, which ignores it"
    return None


def read_config(path: Path) -> dict[str, Any]:
    """Return ``config.json`` of the checkpoint at ``path``.

    Raises:
        CheckpointError: it is not readable.
    """
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} has no readable config.json ({error}); give a checkpoint folder") from error
    return config


def weights_bytes(path: Path) -> int:
    """Return the bytes of the safetensors files in ``path``."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))
