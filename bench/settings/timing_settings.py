"""Settings of timings: what one does, stored whole with its numbers, and which of it is part of a run."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from bench.settings.strict import Extended

CACHE_BYTES = 1 << 28
"""Key-value cache of each model where none is given: the same for both, so that memory differs by the model alone."""


class PairProtocol(Extended):
    """What timings with and without a server have in common: two models are measured in alternation."""

    unstored: ClassVar[frozenset[str]] = frozenset({"enabled", "engine"})
    later: ClassVar[tuple[str, ...]] = (
        "kv_cache_bytes",
        "seed",
        "noise",
        "drift",
        "start_seconds",
        "run_seconds",
        "engine",
    )

    repeats: int = Field(default=5, ge=5, description="alternations of base and compressed model")
    prompt: int = Field(default=128, ge=1, description="prompt tokens per sequence, random")
    generate: int = Field(default=32, ge=1, description="tokens generated per sequence after the first one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(default="auto", description="compute type")
    seed: int = Field(default=0, ge=0, description="seed of the prompts and of arrival times")
    residency: Literal["both", "one"] = Field(
        default="both", description="one: a fresh process for each repeat, where both do not fit"
    )
    kv_cache_bytes: int | None = Field(default=None, ge=1, description="key-value cache; None: 256 MiB")
    threads: int | None = Field(
        default=None, ge=1, description="OpenMP threads of the server, bound to as many cores; None: as set"
    )
    noise: float = Field(
        default=0.10, gt=0.0, description="a ratio whose interval is wider than this share of it is marked as noisy"
    )
    drift: float = Field(
        default=0.10, gt=0.0, description="a base whose speed changed by more than this share in the meantime is marked"
    )
    start_seconds: float = Field(default=600.0, gt=0.0, description="limit for starting a model")
    run_seconds: float = Field(default=600.0, gt=0.0, description="limit for one measurement")
    engine: str | None = Field(default=None, description="engine that is timed; None: vLLM on the device at hand")

    @property
    def cache_bytes(self) -> int:
        """Bytes of the key-value cache."""
        return self.kv_cache_bytes or CACHE_BYTES

    def stored(self) -> dict[str, Any]:
        """Return what stands beside the numbers: every setting, defaults included; the engine names itself there."""
        names = [name for name in type(self).model_fields if name not in self.unstored]
        return {name: getattr(self, name) for name in names} | {"kv_cache_bytes": self.cache_bytes}


class TimingProtocol(PairProtocol):
    """What one timing without a server does."""

    extra: int = Field(default=10, ge=0, description="further alternations while the interval of a ratio is too wide")
    warmup: int = Field(default=1, ge=1, description="batches of each model that are run and not counted")
    batch: int | tuple[int, ...] = Field(
        default=4, description="sequences at once; several sizes as a list, the first one is the headline"
    )
    rounds: int = Field(default=1, ge=1, description="batches summed into one repeat; more for tiny models")

    @field_validator("batch")
    @classmethod
    def _sizes(cls, batch: int | tuple[int, ...]) -> int | tuple[int, ...]:
        sizes = (batch,) if isinstance(batch, int) else batch
        if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
            raise ValueError(f"batch sizes are at least 1, each given once, found {batch}")
        return batch

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes; the first one is the headline."""
        return (self.batch,) if isinstance(self.batch, int) else self.batch


class TimingConfig(TimingProtocol):
    """How a run measures speed, and whether it does."""

    enabled: bool = Field(default=True, description="whether speed is measured")


class OnlineProtocol(PairProtocol):
    """What one timing of a server does."""

    rates: tuple[float, ...] = Field(description="requests per second, exponential gaps; infinity sends all at once")
    requests: int = Field(default=32, ge=1, description="requests of each run")
    warmup: int = Field(default=2, ge=0, description="requests before each run that are not counted")
    generate: int = Field(default=32, ge=2, description="tokens generated for each prompt; times between need two")
    concurrent: int = Field(default=64, ge=1, description="sequences worked on at once; further requests wait")
    run_seconds: float = Field(default=1800.0, gt=0.0, description="limit for one run")

    @field_validator("rates")
    @classmethod
    def _rates(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if not rates or not all(rate > 0 for rate in rates) or len(set(rates)) < len(rates):
            found = ", ".join(map(str, rates)) or "none"
            raise ValueError(f"online timing needs positive request rates, each once, got {found}; give --rate")
        return rates

    def stored(self) -> dict[str, Any]:
        """Return what stands beside the numbers, with infinity in words, which JSON has no number for."""
        return super().stored() | {"rates": ["inf" if math.isinf(rate) else rate for rate in self.rates]}
