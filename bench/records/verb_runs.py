"""Runs of W&B for what leaves no record: a timing of checkpoints, and a training of one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.checkpoint.checkpoint import Checkpoint
from bench.checkpoint.content import plan_document
from bench.records.mirror import Tracker
from bench.records.record import ModelInfo, Timing
from bench.records.run_contents import Beginning, artifact, checkpoint_name, model_name, use
from methods.framework.plan import Plan

_HEADS = ("decode_ratio", "prefill_ratio")


def reads(module: Any, run: Any, folder: Path) -> None:
    """State that a run reads the checkpoint in ``folder``: by the name that the run has which wrote it, or as a source.

    Args:
        module: wandb.
        run: open.
        folder: of the checkpoint.
    """
    document = plan_document(folder) or {}
    origin = document.get("provenance") or {}
    source, trained = origin.get("source") or {}, origin.get("recovery") or []
    if isinstance(source.get("content"), str):
        stated = {name: value for name, value in document.items() if name != "provenance"}
        plan = Plan.loads(json.dumps(stated)).digest
        name = trained_name(trained[-1]["digest"]) if trained else checkpoint_name(source["content"], plan)
        use(run, artifact(module, run, "checkpoint", name, {"plan": plan, "source": source}))
        return
    opened = Checkpoint.open(folder)
    model = ModelInfo(
        name=opened.name, family=opened.inventory.family, revision=opened.revision, content=opened.content
    )
    use(run, artifact(module, run, "model", model_name(model), model.model_dump(mode="json")))


def trained_name(digest: str) -> str:
    """Return what the artifact of a trained checkpoint is called; ``digest`` is that of its training."""
    return f"checkpoint-{digest[:12]}"


def timing_rows(rows: Sequence[tuple[str, Timing]]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of timings: each batch size or request rate, every median with its interval, and marks.

    Args:
        rows: name and timing of each checkpoint, the base's first.
    """
    lines: list[dict[str, Any]] = []
    for name, timing in rows:
        parts = [*timing.batches, *timing.online]
        for part in parts or [timing]:
            told = part.model_dump(mode="json", exclude={"seconds", "protocol", "batches", "online"})
            line: dict[str, Any] = {"checkpoint": name}
            for key, value in told.items():
                if isinstance(value, dict):
                    line |= {f"{key}_{end}": number for end, number in value.items()}
                elif isinstance(value, list):
                    line[key] = ", ".join(map(str, value))
                else:
                    line[key] = value
            lines.append(line)
    columns = list(dict.fromkeys(column for line in lines for column in line))
    return columns, [[line.get(column) for column in columns] for line in lines]


def track_timing(
    rows: Sequence[tuple[str, Timing]], folders: Sequence[Path], settings: Mapping[str, Any], tracker: Tracker
) -> Path | None:
    """Mirror what `moebench time` measured.

    Args:
        rows: name and timing of each checkpoint, the base's first.
        folders: of the checkpoints, in the same order.
        settings: that were given.
        tracker: the mirror.

    Returns:
        The folder of the run, as ``Tracker.mirror``.
    """
    document = [{"checkpoint": name, **timing.model_dump(mode="json")} for name, timing in rows]
    text = json.dumps(document, sort_keys=True)
    identifier = hashlib.sha256(text.encode()).hexdigest()[:16]
    base, own = Path(rows[0][0]).name, [Path(name).name for name, _ in rows[1:]]
    begun = {
        "group": "timing",
        "id": identifier,
        "name": f"{base} · timing · {', '.join(own)}",
        "job_type": "timing",
        "tags": ["timing"],
        "config": {"base": rows[0][0], "compressed": [name for name, _ in rows[1:]], "settings": dict(settings)},
    }

    def filled(module: Any, run: Any) -> None:
        columns, lines = timing_rows(rows)
        run.log({"speeds": module.Table(columns=columns, data=lines, allow_mixed_types=True)})
        for name, timing in rows[1:]:
            lead = f"{Path(name).name}/" if len(rows) > 2 else ""
            for head in _HEADS:
                ratio = getattr(timing, head)
                if ratio is not None:
                    run.summary.update({f"speed/{lead}{head}": ratio.median, f"speed/{lead}{head}_n": ratio.n})
            run.summary.update({f"speed/{lead}marks": ", ".join(timing.marks) or "none"})
            if timing.reason:
                run.summary.update({f"speed/{lead}reason": timing.reason})
        for folder in folders:
            reads(module, run, folder)
        run.log_artifact(artifact(module, run, "timing", f"timing-{identifier}", text))

    return tracker.mirror("timing", identifier, begun, filled)


def training_begins(name: str, family: str, kind: str, settings: Mapping[str, Any]) -> Beginning:
    """Return what is known of a training before it begins.

    Args:
        name: of the checkpoint.
        family: its own.
        kind: of the training.
        settings: those that are no defaults.
    """
    told = {key: value for key, value in settings.items() if key not in ("kind", "seed")}
    text = json.dumps([name, kind, dict(settings)], sort_keys=True, default=str)
    return Beginning(
        id=hashlib.sha256(text.encode()).hexdigest()[:16],
        group="recovery",
        model=name,
        family=family,
        method="recover",
        title=kind,
        knobs=told,
        seeds={"calibration": int(settings.get("seed", 0))},
        trained=True,
    )


def end_training(row: Beginning, source: Path, made: Path, numbers: Mapping[str, Any], tracker: Tracker) -> Path | None:
    """End the run of a training, or make it where it could not begin with the work.

    Args:
        row: as it began.
        source: folder of the checkpoint that was trained.
        made: folder of the result.
        numbers: what the training came to, and the digest of all that determines it.
        tracker: the mirror.
    """
    digest = str(numbers["digest"])

    def filled(module: Any, run: Any) -> None:
        first, last = numbers["losses"]
        kept = {name: value for name, value in numbers.items() if name != "losses"}
        run.summary.update({**kept, "loss/first": first, "loss/last": last})
        reads(module, run, source)
        told = {**numbers, "losses": [first, last], "folder": made.name}
        run.log_artifact(artifact(module, run, "checkpoint", trained_name(digest), told))

    return tracker.end("training", f"{row.id}-{digest[:8]}", row, filled)
