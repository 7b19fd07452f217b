"""From a study to the settings of a run: its front as plan files, on its model, with its calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.settings.run_settings import RunConfig
from bench.settings.strict import validated
from methods.framework.errors import ConfigError, RecordError, UnknownNameError
from methods.framework.outside import an_object, read_json
from sweeps.outcome import signs
from sweeps.promotion import Promotion, filled
from sweeps.sweep_config import CONFIG, SweepConfig, load_sweep
from sweeps.task_guard import check_objectives

MOST = 8
"""Plans of a front that are run where no number is given: each of them is written, scored and timed."""


def study_folder(study: str, store: Path) -> Path:
    """Return the folder of a study.

    Args:
        study: name of a sweep in the store, or its folder.
        store: folder of the store.

    Raises:
        UnknownNameError: there is none; names the closest.
    """
    folders = (store / "sweeps" / study, Path(study))
    for folder in folders:
        if (folder / CONFIG).is_file():
            return folder
    for folder in folders:
        if study and folder.is_dir():
            raise ConfigError(
                f"{folder} holds no {CONFIG}, so its model and settings are not known; start its sweep once more "
                "(`moebench sweep FILE`), which writes it"
            )
    known = [path.parent.name for path in (store / "sweeps").glob(f"*/{CONFIG}")]
    raise UnknownNameError("sweep", study, known, f"Looked for in {store / 'sweeps'}; `moebench sweep FILE` makes one.")


def best_plans(config: SweepConfig, folder: Path, top: int | None = None) -> list[Path]:
    """Return the plan files of a study's front, the best first.

    The best has the best first objective; the next objective decides between equals.

    Args:
        config: the study.
        folder: its folder.
        top: how many; None: all, but at most ``MOST``.

    Raises:
        RecordError: ``front.json`` is missing or damaged.
        ConfigError: the front is empty.
    """
    path, remedy = folder / "front.json", "start the sweep once more (`moebench sweep FILE`), which writes it"
    document = an_object(read_json(path, RecordError, remedy, infinite=True), str(path), RecordError, remedy)
    factors = signs(dict(zip(config.labels, config.directions, strict=True)))
    try:
        places = [
            (*(factor * entry["scores"][label] for label, factor in factors.items()), entry["trial"])
            for entry in document["front"]
        ]
        files = [folder / str(entry["file"]) for entry in document["front"]]
    except (LookupError, TypeError) as error:
        raise RecordError(
            f"{path} is not the front of {config.name} ({type(error).__name__}: {error}); {remedy}"
        ) from error
    if not files:
        raise ConfigError(
            f"study {config.name} has no complete trial yet; go on with its sweep (`moebench sweep FILE`)"
        )
    ordered = [file for _, file in sorted(zip(places, files, strict=True))]
    return ordered[: MOST if top is None else top]


def promoted_run(
    study: str,
    store: Path,
    *,
    top: int | None = None,
    plans: Sequence[Path] = (),
    given: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Return the run that writes and measures plans of a study, in a group of the study's name.

    Model and calibration are the study's. What is scored and timed is what is given, else what the study's ``promote`` says,
    else its ``report``, ``include_path``, ``dtype`` and ``device``.

    Args:
        study: name of a sweep in the store, or its folder.
        store: folder of the store.
        top: plans of the front, the best first; None: as ``promote`` says, else all, at most ``MOST``.
        plans: plan files instead of the front.
        given: settings of a run that are other than those.

    Raises:
        ConfigError: no such study, a setting that is not allowed, or tasks that were an objective of the search.
        RecordError: the study has no readable front.
    """
    folder = study_folder(study, store)
    config = load_sweep(folder / CONFIG)
    own = config.promote or Promotion.model_validate(filled({}, config.model_dump(mode="json")))
    given = dict(given or {})
    parts = {
        "calibration": _calibration(config),
        "evaluation": own.evaluation.model_dump(),
        "timing": own.timing.model_dump(),
    }
    document = {
        "model": config.model,
        "revision": config.revision,
        "plans": list(plans) or best_plans(config, folder, top or own.top),
        "group": config.name,
        **given,
        **{name: {**part, **given.get(name, {})} for name, part in parts.items()},
    }
    run = validated(document, RunConfig, f"promotion of {config.name}")
    scored = run.evaluation.expanded(store)
    check_objectives(config.model_copy(update={"promote": own.model_copy(update={"evaluation": scored})}))
    return run.model_copy(update={"evaluation": scored})


def _calibration(config: SweepConfig) -> dict[str, Any]:
    """Return the study's calibration on the study's device, on which its statistics were measured."""
    return {**config.calibration.model_dump(), "device": config.device}
