"""The command that makes a record again, as far as a record tells how it was made."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from bench.records.record import EvaluationInfo, Record


def command(record: Record, defaults: Mapping[str, Any] | None = None) -> str:
    """Return ``moebench run`` with the settings of ``record``.

    What is as it comes is left out. A record does not hold a recipe's file, and one of an earlier version no limits and types
    of an evaluation: ``open_ends`` tells what a command leaves to the reader.

    Args:
        record: a run.
        defaults: the method's own knobs where nothing is set; a knob that has its default is left out.
    """
    words = ["moebench", "run", "--model", record.model.name]
    if record.model.revision:
        words += ["--revision", record.model.revision]
    if record.group != "run":
        words += ["--group", record.group]
    words += _method(record, defaults or {})
    if (corpus := record.corpus) is not None:
        words += ["--corpus", corpus.name, "--sequences", str(corpus.sequences)]
        words += ["--length", str(corpus.tokens // max(1, corpus.sequences))]
        if corpus.propagation != "one_shot":
            words += ["--propagation", corpus.propagation]
        if seed := record.seeds.get("calibration"):
            words += ["--seed", str(seed)]
    if record.recovery is not None:
        words += ["--recovery", record.recovery.kind]
    if tasks := sorted({score.task for score in record.scores}):
        words += ["--tasks", ",".join(tasks)]
    words += _asked(record.evaluation)
    if record.timing is None or record.timing.reason:
        words.append("--no-time")
    return shlex.join(words)


def open_ends(record: Record) -> tuple[str, ...]:
    """Return what ``command`` cannot tell, a phrase each."""
    untold = record.scores and record.evaluation is None
    found = ["limit, examples and type of the evaluation"] if untold else []
    if record.method == "recipe":
        found.append("the recipe's file (--recipe)")
    if record.recovery is not None:
        found.append("settings of the training")
    return tuple(found)


def _asked(asked: EvaluationInfo | None) -> list[str]:
    """Return how tasks were asked, as options."""
    if asked is None:
        return []
    words: list[str] = []
    for name in ("limit", "num_fewshot", "max_length", "system_instruction", "think_end_token"):
        if (value := getattr(asked, name)) is not None:
            words += [_option(name), str(value)]
    if asked.dtype != "float32":
        words += ["--dtype", asked.dtype]
    if asked.chat_template is not None:
        words.append("--apply-chat-template")
    if asked.fewshot_as_multiturn:
        words.append("--fewshot-as-multiturn")
    for name in ("template_arguments", "generation"):
        for key, value in getattr(asked, name).items():
            words += [_option(name), f"{key}={json.dumps(value)}"]
    for text in asked.stop:
        words += ["--stop", text]
    return words


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _method(record: Record, defaults: Mapping[str, Any]) -> list[str]:
    if record.method is None or record.method == "recipe":
        return []
    if record.method == "plan":
        return ["--plan", f"plans/{record.plan}.json"]
    own = {
        name: value
        for name, value in sorted(record.knobs.items())
        if value is not None
        and not name.startswith("recovery.")
        and (name == "keep" or value != defaults.get(name, ...))
    }
    told = ",".join(f"{name}={_value(value)}" for name, value in own.items())
    return ["--method", f"{record.method}:{told}" if told else record.method]


def _value(value: object) -> str:
    if isinstance(value, list) and all(isinstance(one, int | float) for one in value):
        return "/".join(f"{one:g}" for one in value)
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
