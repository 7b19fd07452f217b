"""A factory of synthetic records for tests of analysis. No number here was measured on anything."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from bench.records.record import (
    CorpusInfo,
    CostInfo,
    Environment,
    Interval,
    ModelInfo,
    Paired,
    RatioInfo,
    Record,
    RecoveryInfo,
    Score,
    Timing,
)

TASKS = ("synthetic_facts", "synthetic_sums", "synthetic_stories")
TITLES = {None: "Uncompressed", "alpha": "Alpha", "beta": "Beta", "gamma": "Gamma"}


def score(task: str, value: float, **changes: Any) -> Score:
    """Return a score of 400 synthetic items; ``changes`` replace any field."""
    fields: dict[str, Any] = {
        "task": task,
        "metric": "acc",
        "value": value,
        "stderr": round(float(np.sqrt(value * (1 - value) / 400)), 6) if 0 < value < 1 else 0.0,
        "n": 400,
        "higher_is_better": True,
        "version": "1.0",
        "digest": f"items-of-{task}",
    }
    return Score(**(fields | changes))


def paired(difference: float, half: float, p: float, test: str = "mcnemar") -> Paired:
    """Return a paired comparison with a symmetric interval of half-width ``half``."""
    interval = "score" if test == "mcnemar" else "joined"
    ends = {"low": difference - half, "high": difference + half}
    return Paired.model_validate({"difference": difference, **ends, "p": p, "test": test, "interval": interval})


def cost(keep: float = 1.0) -> CostInfo:
    """Return the cost of a synthetic model whose routed experts make 800 of 1,000 kB-sized parts."""
    routed = round(8_000_000 * keep)
    return CostInfo(
        experts=round(64 * keep),
        channels=round(64 * 128 * keep),
        routed_parameters=routed,
        parameters=2_000_000 + routed,
        active_parameters=3_000_000,
        bytes=2 * (2_000_000 + routed),
        flops=round(12_000_000_000 * (0.6 + 0.4 * keep)),
    )


def ratios(keep: float = 1.0) -> RatioInfo:
    """Return the ratios of ``cost(keep)`` to ``cost(1)``."""
    total = 1 - cost(keep).parameters / cost().parameters
    return RatioInfo(count=1 - keep, expert=1 - keep, total=total, bytes=total, channels=1 - keep)


def interval(median: float, spread: float = 0.02) -> Interval:
    """Return five synthetic repeats within ``spread`` of the median."""
    return Interval(median=median, low=median * (1 - spread), high=median * (1 + spread), n=5)


def timing(speed: float = 1.0, peak: int = 60_000_000) -> Timing:
    """Return a timing ``speed`` times that of the synthetic base."""
    return Timing(
        prefill=interval(4000.0 * speed),
        decode=interval(150.0 * speed),
        prefill_ratio=interval(speed),
        decode_ratio=interval(speed, 0.03),
        weights_bytes=peak // 3,
        peak_bytes=peak,
        protocol={"batch": 4, "prompt": 128, "generated": 32, "repeats": 5, "engine": "synthetic"},
    )


def record(method: str | None = "alpha", model: str = "synthetic-coarse", **changes: Any) -> Record:
    """Return a complete run of ``method`` on ``model``; ``changes`` replace any field of the record."""
    knobs = changes.pop("knobs", {} if method is None else {"keep": 0.5})
    keep = float(knobs.get("keep", 1.0)) if method else 1.0
    fields: dict[str, Any] = {
        "group": "synthetic",
        "status": "complete",
        "created": "2026-01-02T03:04:05Z",
        "model": ModelInfo(name=model, family="mixtral", content=f"content-of-{model}"),
        "corpus": CorpusInfo(name="synthetic text", digest="c0ffee", tokens=4096, sequences=8, propagation="one_shot"),
        "method": method,
        "title": TITLES.get(method, str(method)),
        "knobs": knobs,
        "stages": () if method is None else ("experts",),
        "plan": f"plan-{method}-{keep}",
        "cost": cost(keep),
        "ratios": ratios(keep),
        "realisation": "in memory",
        "scores": tuple(score(task, 0.9) for task in TASKS),
        "timing": timing(),
        "seconds": {"calibrate": 1.5, "plan": 0.25},
        "seeds": {"calibration": 0},
        "environment": Environment(
            commit="abcdef0", dirty=False, versions={"torch": "0.0"}, device="synthetic CPU", threads=1
        ),
    }
    fields |= changes
    name = repr((model, method, knobs, fields["status"], changes.get("group"), sorted(changes)))
    fields.setdefault("id", hashlib.sha256(name.encode()).hexdigest()[:16])
    return Record.model_validate({**fields, "schema": 1})


RECOVERIES = {"lora": "LoRA", "full": "fine-tuning"}


def recovered(run: Record, gain: float = 0.1, kind: str = "lora", **changes: Any) -> Record:
    """Return ``run`` after a synthetic training that adds ``gain`` to each accuracy; ``changes`` replace any field."""
    scores = []
    for one in run.scores:
        pair = one.paired
        if one.higher_is_better:
            moved = {name: getattr(pair, name) + gain for name in ("difference", "low", "high")} if pair else {}
            pair = pair.model_copy(update=moved) if pair else None
            one = one.model_copy(update={"value": one.value + gain, "paired": pair})
        scores.append(one)
    info = RecoveryInfo(
        kind=kind,
        settings={"kind": kind, "rate": 0.01},
        corpus="synthetic text",
        corpus_digest="c0ffee",
        tokens=65_536,
        steps=32,
        trained_parameters=1000,
        seconds=90.0,
        wall=60.0,
        losses=(2.0, 1.5),
    )
    fields: dict[str, Any] = {
        "title": f"{run.title} + {RECOVERIES[kind]}",
        "knobs": {**run.knobs, "recovery.kind": kind, "recovery.rate": 0.01},
        "recovery": info,
        "scores": tuple(scores),
    }
    fields["id"] = hashlib.sha256(f"{run.id} {kind} {sorted(changes)}".encode()).hexdigest()[:16]
    return run.model_copy(update=fields | changes)


def refused(
    method: str = "gamma", model: str = "synthetic-coarse", reason: str = "needs <two> shared experts"
) -> Record:
    """Return a run that its method refused."""
    return record(
        method, model, status="refused", reason=reason, scores=(), timing=None, cost=None, ratios=None, plan=None
    )


def without_speed(reason: str) -> Timing:
    """Return a timing that holds a reason instead of numbers."""
    return Timing(reason=reason)


def board(
    models: tuple[str, ...] = ("synthetic-coarse", "synthetic-fine"),
    methods: tuple[str, ...] = ("alpha", "beta", "gamma"),
    keeps: tuple[float, ...] = (0.75, 0.5, 0.25),
    tasks: tuple[str, ...] = TASKS,
    seed: int = 0,
) -> list[Record]:
    """Return a base and every method at every size for each model, drawn from ``seed``, and one refusal a model."""
    rng = np.random.default_rng(seed)
    records = []
    for model in models:
        tops = rng.uniform(0.85, 0.98, len(tasks)).round(4)
        perplexity = score("synthetic_text", 4.0, metric="word_perplexity", stderr=0.05, higher_is_better=False)
        base = tuple(score(task, float(top)) for task, top in zip(tasks, tops, strict=True))
        records.append(record(None, model, scores=(*base, perplexity)))
        for place, method in enumerate(methods):
            for keep in keeps:
                records.append(_drawn(rng, model, method, keep, base, 1 + place % 5))
        records.append(refused(model=model, method="delta"))
    return records


def _drawn(
    rng: np.random.Generator, model: str, method: str, keep: float, base: tuple[Score, ...], harm: int
) -> Record:
    scores = []
    for reference in base:
        loss = float(rng.uniform(0.0, 0.12)) * harm * (1 - keep)
        value = round(max(0.25, reference.value - loss), 4)
        change = paired(round(value - reference.value, 4), 0.02, float(np.exp(-loss * 60).round(6)))
        scores.append(score(reference.task, value, paired=change))
    text = 4.0 * (1 + harm * (1 - keep))
    pair = paired(text - 4.0, 0.1, 0.001, "bootstrap")
    scores.append(
        score("synthetic_text", text, metric="word_perplexity", stderr=0.05, higher_is_better=False, paired=pair)
    )
    speed = without_speed("experts differ per layer") if method == "beta" else timing(1 + 0.3 * (1 - keep), 50_000_000)
    return record(method, model, knobs={"keep": keep, "seed": 0}, scores=tuple(scores), timing=speed)
