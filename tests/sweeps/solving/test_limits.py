"""Budgets as they are written."""

from __future__ import annotations

import pytest

from methods.framework.errors import ConfigError
from sweeps.solving.limits import parse_limit

SOURCE = {"bytes": 100, "parameters": 10**10, "experts": 64, "decode_microseconds": 9000}


@pytest.mark.parametrize(
    ("text", "amount"),
    [("bytes=0.29", 29), ("bytes=1", 100), ("bytes = 29%", 29), ("bytes=.5", 50), ("bytes=12GB", 12 * 10**9),
     ("bytes=1.5KiB", 1536), ("bytes=1B", 1), ("parameters=1.2B", 1_200_000_000), ("experts=48", 48),
     ("parameters=0.333", 3_330_000_000),
     ("decode_microseconds=4.5ms", 4500), ("decode_microseconds=0.5", 4500)],
)  # fmt: skip
def test_amounts(text: str, amount: int) -> None:
    assert parse_limit(text, SOURCE).of(SOURCE) == amount


@pytest.mark.parametrize(
    ("text", "message"),
    [("bytes", "not of the form"), ("byte=0.5", "did you mean 'bytes'"), ("bytes=0", "above 0"), ("bytes=120%", "at most at 1"),
     ("bytes=-1", "give a share"), ("bytes=5GiBs", "kB, MB"), ("parameters=5GB", "units k, M"), ("bytes=1e9", "give a share"),
     ("bytes=nan", "give a share")],
)  # fmt: skip
def test_what_is_no_budget(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_limit(text, SOURCE)
