"""How texts are generated: as a task says, as ``generation_config.json`` of the model says, or as set; and where answers end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.settings.named_values import read_values
from bench.settings.stage_settings import EvaluationConfig
from methods.framework.errors import EvaluationError, UnknownNameError
from methods.framework.outside import an_object, read_json

FILE = "generation_config.json"
LENGTH = "max_gen_toks"
"""How lm-eval calls the longest answer in tokens."""
_OF_OTHERS = ("max_length", "max_new_tokens", "transformers_version", "use_cache")
"""What of the file says nothing of how a token is chosen: lengths are the task's."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What a task's own settings of generation give way to.

    Args:
        values: by transformers' names, and ``LENGTH``.
        stop: texts that end an answer, beside those of the task.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn, so that the batch in which a request lies changes its answer."""
        return bool(self.values.get("do_sample"))

    def over(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return a task's ``own`` settings with these in their place."""
        until = own.get("until") or []
        found = {**own, **self.values, "until": [*([until] if isinstance(until, str) else until), *self.stop]}
        return found if found["until"] else {name: value for name, value in found.items() if name != "until"}


def generation_of(asked: EvaluationConfig, folder: Path) -> Generation | None:
    """Return how texts are generated with the model in ``folder``, None where each task says it alone.

    Raises:
        EvaluationError: the model ships no settings, or there is no setting of a name.
    """
    if not (asked.shipped_generation or asked.generation or asked.stop):
        return None
    values = _shipped(folder) if asked.shipped_generation else {}
    if asked.shipped_generation and not values:
        raise EvaluationError(
            f"{folder} has no {FILE} that says how texts are generated; leave --shipped-generation out, or say it with "
            "--generation NAME=VALUE"
        )
    values |= _known(read_values(asked.generation))
    if "do_sample" not in values and "temperature" in values:
        values["do_sample"] = values["temperature"] != 0
    if values.get("do_sample"):
        values.setdefault("temperature", 1.0)  # as transformers has it; lm-eval's own default is 0, which it refuses
    return Generation(values, asked.stop)


def shipped_with(folder: Path) -> dict[str, Any]:
    """Return all that ``generation_config.json`` of a model says; nothing where there is none.

    Raises:
        EvaluationError: it is damaged.
    """
    file = folder / FILE
    if not file.exists():
        return {}
    stated = an_object(read_json(file, EvaluationError, infinite=True), str(file), EvaluationError)
    return {name: value for name, value in stated.items() if name != "transformers_version" and value is not None}


def _shipped(folder: Path) -> dict[str, Any]:
    stated = shipped_with(folder)
    return {
        name: value
        for name, value in stated.items()
        if name not in _OF_OTHERS and not name.startswith("_") and not name.endswith("token_id")
    }


def _known(values: dict[str, Any]) -> dict[str, Any]:
    """Return ``values``, every one of which transformers or lm-eval knows."""
    from transformers import GenerationConfig

    known = [name for name in (*GenerationConfig().to_dict(), LENGTH) if not name.startswith("_")]
    for name in values:
        if name == "until":
            raise EvaluationError("--generation until: texts that end an answer are given by --stop")
        if name not in known:
            try:
                raise UnknownNameError("setting of generation", name, known)
            except UnknownNameError as error:
                raise EvaluationError(str(error)) from None
    return values
