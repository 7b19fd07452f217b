"""What a measured time is of: how many prompts, how long they are, and how many tokens follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from pydantic import Field

from bench.settings.strict import Strict

Timed: TypeAlias = Literal["milliseconds", "prefill_milliseconds", "decode_milliseconds"]
"""Times of a batch of requests: of the whole, of its prompts, and of one step that gives each its next token."""

MICROSECONDS: Mapping[str, str] = {
    "milliseconds": "microseconds",
    "prefill_milliseconds": "prefill_microseconds",
    "decode_milliseconds": "decode_microseconds",
}
"""Under which name each is counted, in whole numbers, which solutions of tables need to be exact."""


class Latency(Strict):
    """The requests whose time is measured, and how often."""

    batch: int = Field(default=1, ge=1, description="requests that run together")
    prompt: int = Field(default=512, ge=1, description="tokens of each prompt")
    generate: int = Field(default=128, ge=1, description="tokens that follow each prompt")
    repeats: int = Field(default=9, ge=3, description="times that each option is run, in turn with the whole layer")
