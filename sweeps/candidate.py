"""A plan under measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from methods.framework.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan under measurement.

    Args:
        plan: the plan, realised on ``model`` while objectives are measured.
        sizes: its cost by name, and ``source`` that of the uncompressed model.
        model: the resident model.
    """

    plan: Plan
    sizes: Mapping[str, int]
    source: Mapping[str, int]
    model: PreTrainedModel
