"""The card of a written checkpoint: what was done, sizes, scores, how to load and serve it, and the source's licence.

A card is a function of the folder and of the record of its scores, so the same run gives the same bytes. Names of folders are in
none, since a checkpoint is written under a hidden name and may be moved.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.cards.hub_results import FOLDER, evaluation_words, metric_name, model_index, result_files
from bench.cards.lineage import CARD, Step, licence_files, stated_by_card, steps
from bench.cards.plan_words import plan_words
from bench.checkpoint.checkpoint import Checkpoint
from bench.checkpoint.content import plan_document
from bench.families.compressed_config import PREFIX, QUANTISATION_KEY
from bench.records.record import Record
from bench.settings.stage_settings import EvaluationConfig
from bench.store.atomic import write_atomically
from methods.framework.cost import Cost, cost_of
from methods.framework.errors import CheckpointError
from methods.framework.plan import Plan

SIZES = {
    "parameters": "parameters",
    "active_parameters": "parameters used for a token",
    "experts": "routed experts",
    "channels": "hidden channels of all routed experts",
    "bytes": "bytes of weights",
}
"""Sizes in the order of the card's table."""
SOURCE_COST = "source_cost"
"""Entry of a provenance with the sizes of the source."""


def write_card(folder: Path, record: Record | None = None, asked: EvaluationConfig | None = None) -> None:
    """Write card and results of the checkpoint in ``folder``, which may still have its hidden name.

    Args:
        folder: of a checkpoint with a ``plan.json``.
        record: of its scores; None where it has none yet.
        asked: how these were taken.

    Raises:
        CheckpointError: the folder cannot be read or written.
    """
    files = card_files(folder, record, asked)
    earlier = {path.relative_to(folder).as_posix() for path in (folder / FOLDER).glob("*.yaml")}
    for name in earlier - set(files):
        (folder / name).unlink(missing_ok=True)
    for name, text in files.items():
        write_atomically(folder / name, text, CheckpointError, "free space or choose another disk")


def card_files(folder: Path, record: Record | None = None, asked: EvaluationConfig | None = None) -> dict[str, str]:
    """Return the texts that ``write_card`` writes, by their names below ``folder``.

    Args:
        folder: of a checkpoint.
        record: of its scores; None where it has none yet.
        asked: how these were taken.

    Raises:
        CheckpointError: the folder cannot be read, or no plan of ours made it.
    """
    document = plan_document(folder)
    if document is None:
        raise CheckpointError(
            f"{folder} has no plan.json, so nothing tells what was done; name a folder that moebench wrote"
        )
    written = Checkpoint.open(folder)
    written.close()
    told, config, carried = steps(document), written.config, stated_by_card(folder)
    title = _title(told, record)
    parts = [
        f"# {title}",
        _beginning(told),
        "## What was done\n\n" + _done(told),
        "## Sizes\n\n" + _sizes(told, cost_of(written.inventory)),
        *([] if record is None or not record.scores else ["## Scores\n\n" + _scores(record, asked)]),
        "## Loading and serving\n\n" + _loading(config),
        "## Licence\n\n" + _licence(carried, licence_files(folder)),
    ]
    front = _front(told, config, carried, title, record)
    files = {} if record is None else result_files(record, asked)
    return {CARD: f"---\n{front}\n---\n\n" + "\n\n".join(parts) + "\n", **files}


def is_stock(config: Mapping[str, Any]) -> bool:
    """Return whether transformers and vLLM load a checkpoint of this config by themselves, with the values that it holds."""
    architecture = str((config.get("architectures") or [""])[0])
    groups = (config.get(QUANTISATION_KEY) or {}).get("config_groups") or {}
    return not architecture.startswith(PREFIX) and not config.get("per_layer_config") and len(groups) <= 1


def _title(told: Sequence[Step], record: Record | None) -> str:
    """Return the source's name and what was done to it."""
    source = str(told[0].source.get("name") or "a model").rsplit("/", 1)[-1]
    if record is not None and len(told) == 1:
        return f"{source}: {record.title}{_knobs(record.knobs)}"
    done = [f"{_rule(step.provenance)}{_knobs(step.provenance.get('knobs') or {})}" for step in told]
    return f"{source}: " + ", then ".join([*done, *(_training(told[-1]))])


def _rule(provenance: Mapping[str, Any]) -> str:
    """Return the name of what decided, for people."""
    from methods.registry import method_class, names

    method = provenance.get("method")
    if provenance.get("title"):
        return " ".join(str(provenance["title"]).split())  # a plan file may say anything here
    return method_class(method).title if method in names() else str(method or "a plan")


def _knobs(knobs: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in knobs.items() if name == "keep" or name.startswith("recovery.")}
    return "".join(f", {name} {_compact(value)}" for name, value in shown.items())


def _compact(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _training(last: Step) -> list[str]:
    entries = last.provenance.get("recovery") or ()
    return [f"trained ({entry['settings']['kind']}, {entry['tokens']:,} tokens)" for entry in entries]


def _beginning(told: Sequence[Step]) -> str:
    source = told[0].source
    name, revision = source.get("name"), source.get("revision")
    link = (
        f"[{name}](https://huggingface.co/{name}) at revision `{revision}`"
        if revision
        else f"{name or 'a local model'}"
    )
    return f"A Mixture-of-Experts language model, made from {link} by moebench. `plan.json` states each decision."


def _done(told: Sequence[Step]) -> str:
    """Return the compressions in words, each with its knobs."""
    from methods.registry import method_class, names

    lines: list[str] = []
    for number, step in enumerate(told, 1):
        method = step.provenance.get("method")
        source = f" ({method_class(method).source})" if method in names() else ""
        lead = f"{number}. " if len(told) > 1 else ""
        lines.append(f"{lead}{_rule(step.provenance)}{source}")
        knobs = step.provenance.get("knobs") or {}
        if knobs:
            lines[-1] += ", with " + ", ".join(f"`{name}={_compact(value)}`" for name, value in sorted(knobs.items()))
        if sweep := step.provenance.get("sweep"):
            lines[-1] += f"; found by the search {sweep}"
        lines[-1] += ":\n"
        lines += [f"   - {words}" if lead else f"- {words}" for words in _words(step)]
        lines += [f"   - Then {word}." if lead else f"- Then {word}." for word in _training(step)]
    return "\n".join(lines)


def _words(step: Step) -> list[str]:
    plan = Plan.loads(json.dumps(step.plan))
    return plan_words(plan) if plan.stages else ["No tensor is changed."]


def _sizes(told: Sequence[Step], cost: Cost) -> str:
    """Return the table of sizes, those of the source beside ours where they are known."""
    own = asdict(cost)
    before = told[0].provenance.get(SOURCE_COST)
    if not isinstance(before, Mapping) or not all(isinstance(before.get(name), int) for name in SIZES):
        return _table(("", "this model"), [(words, f"{own[name]:,}") for name, words in SIZES.items()])
    rows = [
        (words, f"{before[name]:,}", f"{own[name]:,}", _share(own[name], before[name])) for name, words in SIZES.items()
    ]
    return _table(("", "source", "this model", "share left"), rows)


def _share(after: int, before: int) -> str:
    return f"{100 * after / before:.1f} %" if before else ""


def _scores(record: Record, asked: EvaluationConfig | None) -> str:
    """Return the table of scores, with errors and paired differences, and how they were taken."""
    rows = []
    for score in record.scores:
        pair, error = score.paired, "" if score.stderr is None else f" ± {score.stderr:.4f}"
        change = "" if pair is None else f"{pair.difference:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}]"
        rows.append((score.task, metric_name(score), f"{score.value:.4f}{error}", change, str(score.n)))
    table = _table(("task", "metric", "score", "difference to the source", "n"), rows)
    version = record.environment.versions.get("lm_eval") if record.environment else None
    how = [f"lm-eval{f' {version}' if version else ''}", evaluation_words(asked)]
    protocol = f"Scored by {', '.join(part for part in how if part)}."
    return (
        f"{table}\n\n{protocol} ± is one standard error over items; differences are paired item by item and stand with their "
        "95 % intervals."
    )


def _loading(config: Mapping[str, Any]) -> str:
    """Return how the model is loaded and served; PATH stands for this folder or the name of its repository."""
    own = '```python\nfrom bench import load_model  # of moebench\n\nmodel = load_model("PATH")\n```'
    serve = "```\nmoebench serve PATH\n```"
    if not is_stock(config):
        return (
            "PATH is this folder, or the name of this repository. Layers differ from each other, or experts are stored in "
            f"another form, so stock loaders refuse this model or would fill it wrongly. It loads in transformers by\n\n{own}\n\n"
            f"and is served by vLLM with the plug-in that comes with moebench:\n\n{serve}"
        )
    kind = str((config.get("architectures") or ["AutoModelForCausalLM"])[0])
    stock = f'```python\nfrom transformers import {kind}\n\nmodel = {kind}.from_pretrained("PATH")\n```'
    return (
        f"PATH is this folder, or the name of this repository. Transformers loads it:\n\n{stock}\n\n"
        "and so does vLLM:\n\n```\nvllm serve PATH\n```\n\n"
        "`load_model` and `moebench serve PATH` of moebench do the same, and name files that are damaged."
    )


def _licence(carried: Mapping[str, Any], files: Sequence[str]) -> str:
    name = carried.get("license_name") or carried.get("license")
    beside = f"; see {', '.join(f'`{file}`' for file in files)}" if files else ""
    if name:
        return f"That of the source holds for this model, too: {name}{beside}."
    if files:
        return f"The card of the source names no licence. What came with it holds for this model, too{beside}."
    return "The source states no licence. Ask its authors before this model is passed on."


def _front(
    told: Sequence[Step], config: Mapping[str, Any], carried: Mapping[str, Any], title: str, record: Record | None
) -> str:
    """Return the metadata of the card as YAML.

    Args:
        told: what was done.
        config: content of ``config.json``.
        carried: what the card of the source states.
        title: of the card.
        record: of its scores.
    """
    from huggingface_hub import ModelCardData

    source = told[0].source
    base = source["name"] if source.get("revision") else carried.get("base_model")
    stages = sorted(frozenset().union(*(Plan.loads(json.dumps(step.plan)).stages for step in told)))
    methods = [str(step.provenance["method"]) for step in told if step.provenance.get("method")]
    relation = "finetune" if _training(told[-1]) else "quantized" if "bits" in stages else None
    scored = record is not None and bool(record.scores)
    related: dict[str, Any] = {"base_model_relation": relation} if relation and base else {}
    data = ModelCardData(
        base_model=base,
        language=carried.get("language"),
        license=carried.get("license"),
        license_name=carried.get("license_name"),
        license_link=carried.get("license_link"),
        library_name="transformers" if is_stock(config) else "moebench",
        pipeline_tag="text-generation",
        tags=["mixture-of-experts", "compressed", "moebench", *methods, *stages],
        eval_results=model_index(record) if record is not None and scored else None,
        model_name=title if scored else None,
        **related,
    )
    return data.to_yaml(line_break="\n")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(head), *(tuple(row) for row in rows)]
    ruled = [lines[0], tuple("---" for _ in lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in ruled)
