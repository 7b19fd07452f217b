"""Timings keep the ids of earlier runs and store what they did, whole."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bench.settings.strict import validated
from bench.settings.timing_settings import CACHE_BYTES, OnlineProtocol, TimingConfig, TimingProtocol
from methods.framework.errors import ConfigError

FIRST: dict[str, Any] = {
    "enabled": True,
    "repeats": 5,
    "extra": 10,
    "warmup": 1,
    "batch": 4,
    "prompt": 128,
    "generate": 32,
    "rounds": 1,
    "dtype": "auto",
    "threads": None,
    "residency": "both",
}
"""What ids of runs were made of from the first on; what came later is added only where it is no default."""
SHARED: dict[str, Any] = {
    "repeats": 5,
    "prompt": 128,
    "generate": 32,
    "dtype": "auto",
    "seed": 0,
    "residency": "both",
    "kv_cache_bytes": 1 << 28,
    "threads": None,
    "noise": 0.1,
    "drift": 0.1,
    "start_seconds": 600.0,
}


def test_later_settings_leave_the_ids_of_earlier_runs_alone() -> None:
    assert TimingConfig().model_dump(mode="json") == FIRST
    later: dict[str, Any] = {"kv_cache_bytes": 5, "seed": 1, "noise": 0.2, "drift": 0.2, "engine": "vllm-cpu"}
    later |= {"start_seconds": 1.0, "run_seconds": 1.0}
    for name, value in later.items():
        assert TimingConfig(**{name: value}).model_dump(mode="json") == {**FIRST, name: value}
    assert TimingConfig(kv_cache_bytes=CACHE_BYTES).model_dump(mode="json")["kv_cache_bytes"] == 1 << 28


def test_what_is_stored_is_resolved_and_whole() -> None:
    own = {"extra": 10, "warmup": 1, "batch": (1, 2), "rounds": 1, "run_seconds": 600.0}
    assert TimingConfig(batch=(1, 2), engine="vllm-cpu").stored() == {**SHARED, **own}
    assert TimingProtocol(batch=(1, 2), kv_cache_bytes=7).stored() == {**SHARED, **own, "kv_cache_bytes": 7}
    own = {"requests": 32, "warmup": 2, "concurrent": 64, "run_seconds": 1800.0, "rates": [1.0, "inf"]}
    assert OnlineProtocol(rates=(1.0, math.inf)).stored() == {**SHARED, **own}


def test_sizes_are_checked() -> None:
    assert TimingProtocol(batch=3).batches == (3,) and TimingProtocol(batch=(3, 1)).batches == (3, 1)
    with pytest.raises(ConfigError, match=r"batch sizes are at least 1, each given once, found \(1, 0\)"):
        validated({"batch": (1, 0)}, TimingConfig, "options")
