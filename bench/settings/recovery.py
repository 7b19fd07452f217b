"""Settings of a recovery."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from bench.settings.mixture import CorpusLine
from bench.settings.strict import Strict

Kind = Literal["lora", "full", "router_kd", "expert_kd"]
RATES: Mapping[Kind, float] = {"lora": 1e-4, "full": 8e-6, "router_kd": 1e-4, "expert_kd": 2e-5}
"""Learning rates where none is given.

*Source*: ``full`` arXiv 2406.02500 (DeepSeek-MoE-16B), ``expert_kd`` arXiv 2410.12013 (Mixtral-8x7B); the other two are
ours. Models of a few million weights learn at rates ten to a hundred times as high.
"""
_OWN: Mapping[str, Kind] = {"rank": "lora", "alpha": "lora", "temperature": "router_kd", "balance": "expert_kd"}
"""Settings that mean something to one kind only."""


class RecoverySettings(Strict):
    """How a compressed checkpoint is trained."""

    kind: Kind = Field(
        description="lora: low-rank updates; full: all weights; router_kd: routers alone, on the teacher's logits; "
        "expert_kd: all weights, on the text and on the outputs of the teacher's experts"
    )
    corpus: CorpusLine = Field(
        default="pocket", description="text file, datasets:NAME, pocket[:domain], or a file of token ids"
    )
    sequences: int = Field(default=512, ge=1, description="windows")
    length: int = Field(default=512, ge=2, description="tokens in a window")
    seed: int = Field(default=0, ge=0, description="seed of the choice and order of windows and of initial adapters")
    epochs: int = Field(default=1, ge=1, description="passes over the windows")
    steps: int | None = Field(default=None, ge=1, description="steps of the optimiser, instead of epochs")
    batch: int = Field(default=16, ge=1, description="windows in a step")
    at_once: int | None = Field(default=None, ge=1, description="windows in memory at once; None: the whole batch")
    rate: float | None = Field(default=None, gt=0.0, description="highest learning rate; None: the kind's own")
    warmup: float = Field(default=0.03, ge=0.0, le=1.0, description="share of the steps in which the rate rises")
    decay: float = Field(default=0.0, ge=0.0, description="weight decay of AdamW")
    experts: bool | None = Field(
        default=None, description="whether routed experts are trained; None: by full and expert_kd, not by lora"
    )
    rank: int = Field(default=32, ge=1, description="lora: rank of each update")
    alpha: float | None = Field(
        default=None, gt=0.0, description="lora: updates are times alpha / rank; None: the rank"
    )
    temperature: float = Field(default=1.0, gt=0.0, description="router_kd: logits of both models are divided by it")
    balance: float | None = Field(
        default=None, ge=0.0, description="expert_kd: factor of the experts' errors; None: see ExpertDistillation"
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="type of the weights in memory")
    device: str = Field(default="auto", description="torch device; auto takes the GPU where there is one")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for name, kind in _OWN.items():
            if kind != self.kind and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is a setting of {kind}, not of {self.kind}; leave it out")
        if self.kind == "router_kd" and self.experts:
            raise ValueError("router_kd trains routers alone; leave experts out, or choose another kind")
        if self.kind == "expert_kd" and self.experts is False:
            raise ValueError("expert_kd without experts has nothing to distill into; leave experts out")
        return self

    @property
    def trains_experts(self) -> bool:
        """Whether the routed experts are trained."""
        return self.kind in ("full", "expert_kd") if self.experts is None else self.experts

    @property
    def needs_teacher(self) -> bool:
        """Whether the uncompressed model takes part."""
        return self.kind in ("router_kd", "expert_kd")

    def resolved(self) -> dict[str, Any]:
        """Return all settings as JSON values, each default of a kind filled in."""
        own = {"rate": self.rate or RATES[self.kind], "experts": self.trains_experts}
        if self.kind == "lora":
            own["alpha"] = self.alpha or float(self.rank)
        foreign = {name for name, kind in _OWN.items() if kind != self.kind}
        return {**self.model_dump(mode="json", exclude=foreign), **own}
