"""What a timing does, and which checkpoints it can be done on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from methods.framework.errors import ConfigError

DEQUANTISED = "served with de-quantised values on this device: quality can be checked, no speed is claimed"
"""Why nothing is timed where few bits are held as what they stand for."""


@dataclass(frozen=True)
class TimingProtocol:
    """What one timing does; the whole of it is stored with the numbers."""

    repeats: int = 5  # pairs of measurements, at least 5
    extra: int = 10  # further pairs, one at a time, while the row is noisy; none with residency "one"
    warmup: int = 1  # batches of each model that are run and not counted
    batch: int | tuple[int, ...] = 4  # sequences at once; several sizes are timed one after the other in each repeat
    prompt: int = 128  # tokens of each prompt, random
    generate: int = 32  # tokens generated for each prompt after the first one
    rounds: int = 1  # batches summed into one repeat: more for models so small that a batch takes milliseconds
    dtype: str = "auto"  # of weights and activations, as vLLM names it
    seed: int = 0  # of the prompts
    residency: Literal["both", "one"] = "both"  # "one": a fresh process for each repeat, where both do not fit
    kv_cache_bytes: int = 1 << 28  # the same for both models, so that memory differs by the model alone
    threads: int | None = None  # OpenMP threads of the worker, bound to as many cores; None: as set, and not bound
    noise: float = 0.10  # a ratio whose interval is wider than this share of it marks the row as noisy, see `time`
    drift: float = 0.10  # a base that got slower or faster by more than this share in the meantime marks the row
    start_seconds: float = 600.0  # limit for starting a model
    run_seconds: float = 600.0  # limit for one batch

    def __post_init__(self) -> None:
        """Refuse settings that cannot give a fair number.

        Raises:
            ConfigError: fewer than five repeats, or a length below one.
        """
        if self.repeats < 5:
            raise ConfigError(f"timing needs at least 5 repeats for an interval, got {self.repeats}; raise repeats")
        for name in ("prompt", "generate", "rounds", "warmup"):
            if getattr(self, name) < 1:
                raise ConfigError(f"timing setting {name} must be at least 1, got {getattr(self, name)}")
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise ConfigError(f"timing setting batch must be at least 1, each size once, got {self.batch}")
        if self.residency not in ("both", "one"):
            raise ConfigError(f"timing setting residency must be 'both' or 'one', got {self.residency!r}")

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes; the first one is the headline."""
        return (self.batch,) if isinstance(self.batch, int) else tuple(self.batch)


@dataclass(frozen=True)
class OnlineProtocol:
    """What one timing of a server does; the whole of it is stored with the numbers."""

    rates: tuple[float, ...]  # requests per second, exponential gaps; infinity sends all at once
    requests: int = 32  # of each run
    repeats: int = 5  # pairs of runs at each rate, at least 5
    warmup: int = 2  # requests before each run that are not counted
    prompt: int = 128  # tokens of each prompt, random
    generate: int = 32  # tokens generated for each prompt
    concurrent: int = 64  # sequences that the server works on at once; further requests wait
    dtype: str = "auto"  # of weights and activations, as vLLM names it
    seed: int = 0  # of prompts and arrival times; each repeat adds one
    residency: Literal["both", "one"] = "both"  # "one": a fresh server for each repeat, where both do not fit
    kv_cache_bytes: int = 1 << 28  # the same for both models
    threads: int | None = None  # OpenMP threads of the server, bound to as many cores; None: as set, and not bound
    noise: float = 0.10  # a ratio whose interval is wider than this share of it is marked as noisy
    drift: float = 0.10  # a base whose number changed by more than this share in the meantime marks it
    start_seconds: float = 600.0  # limit for starting a server
    run_seconds: float = 1800.0  # limit for one run

    def __post_init__(self) -> None:
        """Refuse settings that cannot give a fair number.

        Raises:
            ConfigError: no rate, a rate of zero, fewer than five repeats, or a length below one.
        """
        if not self.rates or not all(rate > 0 for rate in self.rates) or len(set(self.rates)) < len(self.rates):
            found = ", ".join(map(str, self.rates)) or "none"
            raise ConfigError(f"online timing needs positive request rates, each once, got {found}; give --rate")
        if self.repeats < 5:
            raise ConfigError(f"timing needs at least 5 repeats for an interval, got {self.repeats}; raise repeats")
        for name in ("requests", "prompt", "concurrent"):
            if getattr(self, name) < 1:
                raise ConfigError(f"timing setting {name} must be at least 1, got {getattr(self, name)}")
        if self.generate < 2:
            raise ConfigError(f"times between tokens need at least 2 tokens, got generate {self.generate}; raise it")
        if self.residency not in ("both", "one"):
            raise ConfigError(f"timing setting residency must be 'both' or 'one', got {self.residency!r}")


def weights_bytes(path: Path) -> int:
    """Return the bytes of the safetensors files in ``path``."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))
