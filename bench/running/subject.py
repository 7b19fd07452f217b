"""One row of a run: a model on its way from the source to its record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.evaluation.evaluate import Evaluation
from bench.records.record import CorpusInfo, Record, SimilarityInfo, Status, TargetInfo, Timing
from bench.running.planned import Compression, Planned
from bench.running.stages import Clock
from bench.settings.recovery import RecoverySettings
from methods.framework.plan import Plan

if TYPE_CHECKING:
    from bench.recovery.recover import Recovered


RECOVERIES = {"lora": "LoRA", "full": "fine-tuning", "router_kd": "Router KD", "expert_kd": "expert distillation"}
"""Kinds of training, as tables call them."""


@dataclass
class Subject:
    """One row of the result on its way: the base (``method`` None), one configured method or recipe, or one plan file."""

    method: Compression | None
    recovery: RecoverySettings | None = None
    recovered: Recovered | None = None
    cold: int | None = None
    similarity: tuple[SimilarityInfo, ...] = ()
    target: TargetInfo | None = None
    id: str = ""
    attempt: int = 1
    plan: Plan | None = None
    path: Path | None = None
    content: str = ""
    corpus: CorpusInfo | None = None
    evaluation: Evaluation | None = None
    timing: Timing | None = None
    status: Status = "complete"
    reason: str | None = None
    record: Record | None = None
    clock: Clock = field(default_factory=Clock)

    @property
    def title(self) -> str:
        """Name for tables; the knobs stand beside it."""
        if self.method is None:
            return "base"
        return self.method.title + (f" + {RECOVERIES[self.recovery.kind]}" if self.recovery else "")

    @property
    def knobs(self) -> dict[str, Any]:
        """Every setting of the method, and those of the training after it that are no defaults, as JSON values."""
        if self.method is None:
            return {}
        training = self.recovery.model_dump(mode="json", exclude_defaults=True) if self.recovery else {}
        return {**self.method.knobs, **{f"recovery.{name}": value for name, value in training.items()}}

    @property
    def provenance(self) -> dict[str, Any]:
        """Where its plan comes from, as plan files state it."""
        if self.method is None:
            return {}
        if isinstance(self.method, Planned):
            return dict(self.method.provenance)
        return {"method": self.method.name, "knobs": self.method.knobs}
