"""What a run of W&B holds of a record: name and settings, numbers, tables, charts, and artifacts with their lineage."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.records.depth_profile import depth_profile
from bench.records.record import ModelInfo, Record, Score
from bench.records.usual import default_knobs

if TYPE_CHECKING:
    import wandb

Average = Callable[[Sequence[Score]], float | None]
"""The mean that tables show of a record's scores; None where there is none."""

_COLUMNS = (
    "task",
    "metric",
    "filter",
    "value",
    "stderr",
    "n",
    "higher_is_better",
    "version",
    "difference",
    "low",
    "high",
    "p",
    "test",
)
_SPEEDS = ("prefill", "decode", "prefill_ratio", "decode_ratio")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Beginning:
    """What is known of a row when its work begins.

    Args:
        id: of the record, without the number of the attempt.
        group: runs that belong together.
        model: name of the source.
        family: of the source.
        method: registry name, recipe or plan; None for the base.
        title: name for tables.
        knobs: settings of the method.
        seeds: by purpose.
        trained: whether a training follows the compression.
    """

    id: str
    group: str
    model: str
    family: str
    method: str | None
    title: str
    knobs: Mapping[str, Any]
    seeds: Mapping[str, int]
    trained: bool = False

    @classmethod
    def of(cls, record: Record) -> Beginning:
        """Return what was known of the row of ``record``."""
        return cls(
            id=stem(record.id),
            group=record.group,
            model=record.model.name,
            family=record.model.family,
            method=record.method,
            title=record.title,
            knobs=record.knobs,
            seeds=record.seeds,
            trained=record.recovery is not None,
        )

    @property
    def name(self) -> str:
        """The setting in one line: model, method with the knobs that are not as they come, seed."""
        seed = [] if self.method is None else [f"seed {self.seeds.get('calibration', 0)}"]
        return " · ".join([self.model, self.setting, *seed])

    @property
    def setting(self) -> str:
        """The method with its share, and with the knobs that are not as they come."""
        return setting(self.method, self.title, self.knobs)

    def arguments(self, group: str | None) -> dict[str, Any]:
        """Return what begins a run of W&B, in ``group`` where one is given, else in the row's own."""
        return {
            "group": group or self.group,
            "id": self.id,
            "name": self.name,
            "job_type": "recovery" if self.trained else "run",
            "tags": [self.family, self.method or "base"],
            "config": {
                "model": {"name": self.model, "family": self.family},
                "method": self.method,
                "title": self.title,
                "knobs": dict(self.knobs),
                "seeds": dict(self.seeds),
            },
        }


def setting(method: str | None, title: str, knobs: Mapping[str, Any]) -> str:
    """Return a method in words: its title, its share, and the knobs that are not as they come.

    Args:
        method: registry name, recipe or plan; None for the base.
        title: name for tables.
        knobs: all of its settings.
    """
    usual = default_knobs(method)
    own = {
        name: value
        for name, value in knobs.items()
        if value is not None and (name.endswith("keep") or (value != usual.get(name, ...) and method != "recipe"))
    }
    return " ".join([title, *(f"{name}={_short(value)}" for name, value in own.items())])


def model_name(model: ModelInfo) -> str:
    """Return what the artifact of a source is called."""
    return _safe(f"model-{model.name}-{model.content[:12]}")


def checkpoint_name(source: str, plan: str, trained: str = "") -> str:
    """Return what the artifact of a written checkpoint is called: by what made it, so that whoever reads it finds it.

    Args:
        source: content of the source.
        plan: digest of the plan.
        trained: digest of the training after it, empty where there was none.
    """
    return "-".join(filter(None, ("checkpoint", source[:12], plan[:12], trained[:16])))


def stem(identifier: str) -> str:
    """Return the id of a record without the number of its attempt, so that a row which is tried again stays one run."""
    return re.sub(r"-\d+$", "", identifier)


def _short(value: Any) -> str:
    """Return a knob's value as short as it can be read: .5 for 0.5, .9/.5 over the depth, a long list by its mean and range."""
    if isinstance(value, (list, tuple)):
        return depth_profile(value, _short) or "/".join(_short(one) for one in value)
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text[1:] if isinstance(value, float) and text.startswith("0.") else text


def configuration(record: Record) -> dict[str, Any]:
    """Return what determined the run: model, method, knobs, corpus, seeds, environment, and the study that found its plan."""
    keep = {
        "id",
        "model",
        "corpus",
        "method",
        "title",
        "knobs",
        "plan",
        "realisation",
        "seeds",
        "environment",
        "created",
    }
    told = {**record.model_dump(mode="json", include=keep), "schema": record.schema_version}
    return told if record.found_by is None else {**told, "found_by": record.found_by.model_dump(mode="json")}


def summary(record: Record, base: Record | None = None, average: Average | None = None) -> dict[str, Any]:
    """Return the run's numbers by name; fields without a value are left out.

    First what tables show (average, retention, size, speed, with n and marks), then every score, ratio, cost and timing.

    Args:
        record: the record.
        base: that of the uncompressed model, for the share of its average that is left.
        average: the mean that tables show.
    """
    numbers: dict[str, Any] = {"status": record.status, "reason": record.reason, **_headline(record, base, average)}
    for score in record.scores:
        name = f"score/{score.task}/{score.metric}" + ("" if score.filter == "none" else f"/{score.filter}")
        numbers[name] = score.value
        numbers[f"{name}_stderr"] = score.stderr
        if score.paired is not None:
            numbers[f"{name}_difference"] = score.paired.difference
    for group, part in (("cost", record.cost), ("ratio", record.ratios)):
        numbers |= {} if part is None else {f"{group}/{name}": value for name, value in part.model_dump().items()}
    if record.timing is not None:
        for name, value in record.timing.model_dump(exclude={"protocol", "marks", "batches", "online"}).items():
            numbers |= (
                {f"timing/{name}/{k}": v for k, v in value.items()}
                if isinstance(value, dict)
                else {f"timing/{name}": value}
            )
    numbers |= {f"seconds/{stage}": value for stage, value in record.seconds.items()}
    return {name: value for name, value in numbers.items() if value is not None}


def _headline(record: Record, base: Record | None, average: Average | None) -> dict[str, Any]:
    mean, whole = (average(one.scores) if average and one is not None else None for one in (record, base))
    numbers: dict[str, Any] = {"average": mean, "retention": mean / whole if mean is not None and whole else None}
    if mean is not None:
        numbers["average_items"] = sum(score.n for score in record.scores)
    if record.cost is not None:
        numbers["size/bytes"] = record.cost.bytes
    if record.ratios is not None:
        numbers["size/share"] = 1 - record.ratios.bytes
    timing = record.timing
    if timing is not None and timing.decode_ratio is not None:
        numbers["speed/decode_ratio"], numbers["speed/n"] = timing.decode_ratio.median, timing.decode_ratio.n
        numbers["speed/prefill_ratio"] = timing.prefill_ratio.median if timing.prefill_ratio else None
        numbers["speed/marks"] = ", ".join(timing.marks) or "none"
    return numbers


def score_rows(record: Record) -> list[list[Any]]:
    """Return one row for each score, in the order of the table's columns."""
    rows = []
    for score in record.scores:
        fields = {
            **(score.paired.model_dump() if score.paired else {}),
            **score.model_dump(exclude={"paired", "digest", "dataset", "subset"}),
        }
        rows.append([fields.get(column) for column in _COLUMNS])
    return rows


def speed_table(record: Record) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the speeds: each batch size, every median with its interval, repeats and marks."""
    columns = ["batch", *(f"{name}_{end}" for name in _SPEEDS for end in ("median", "low", "high", "n")), "marks"]
    rows: list[list[Any]] = []
    for one in record.timing.batches if record.timing is not None else ():
        found = one.model_dump(include=set(_SPEEDS))
        cells = [(found[name] or {}).get(end) for name in _SPEEDS for end in ("median", "low", "high", "n")]
        rows.append([one.batch, *cells, ", ".join(one.marks)])
    return columns, rows


def fill(
    module: Any,
    run: wandb.Run,
    record: Record,
    plan: str | None,
    base: Record | None = None,
    average: Average | None = None,
) -> None:
    """Put what the record holds into its run.

    Args:
        module: wandb.
        run: open.
        record: what it is of.
        plan: its plan as JSON.
        base: record of the uncompressed model.
        average: the mean that tables show.
    """
    run.config.update(configuration(record), allow_val_change=True)
    tables: dict[str, Any] = {}
    if record.scores:
        tables["scores"] = module.Table(columns=list(_COLUMNS), data=score_rows(record))
    columns, rows = speed_table(record)
    if rows:
        tables["speeds"] = module.Table(columns=columns, data=rows)
    if tables:
        run.log(tables)
    run.summary.update(summary(record, base, average))
    _attach(module, run, record, plan)


def _attach(module: Any, run: wandb.Run, record: Record, plan: str | None) -> None:
    """Attach model, plan, checkpoint and record as artifacts: the run uses the first and makes the others.

    A plan is named by its digest, so that equal plans share one. Of models and checkpoints what identifies them is kept, no
    weights. The files lie in the run's own folder, so `wandb sync` finds them there later.
    """
    model = record.model.model_dump(mode="json")
    use(run, artifact(module, run, "model", model_name(record.model), model))
    if plan is not None and record.plan is not None:
        run.log_artifact(artifact(module, run, "plan", f"plan-{record.plan[:16]}", plan))
        made = {"source": model, "plan": record.plan, "cost": record.cost.model_dump() if record.cost else None}
        if record.recovery is not None:
            made["recovery"] = record.recovery.model_dump(mode="json")
        trained = record.id if record.recovery is not None else ""
        name = checkpoint_name(record.model.content, record.plan, trained)
        run.log_artifact(artifact(module, run, "checkpoint", name, made))
    document = record.model_dump(mode="json", by_alias=True)
    run.log_artifact(artifact(module, run, "record", f"record-{record.id}", document))


def artifact(module: Any, run: wandb.Run, kind: str, name: str, content: Any) -> Any:
    """Return an artifact of one JSON file.

    Args:
        module: wandb.
        run: in whose folder the file lies.
        kind: type of the artifact, and name of the file.
        name: of the artifact.
        content: JSON values, or JSON as text.
    """
    path = Path(run.dir) / f"{kind}.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2, sort_keys=True) + "\n")
    made = module.Artifact(name, type=kind)
    made.add_file(str(path), name=path.name, policy="immutable")
    return made


def use(run: Any, read: Any) -> None:
    """State that the run reads an artifact.

    W&B's public call refuses this offline, though its files can say it: this is what that call does with an artifact that is new.
    """
    if not run.offline:
        run.use_artifact(read)
        return
    run._log_artifact(read, is_user_created=True, use_after_commit=True)


def _safe(name: str) -> str:
    return _UNSAFE.sub("-", name)[:128]
