"""From a study to the settings of a run: its front or its best plans as files, on its model, with its calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.settings.run_settings import RunConfig
from bench.settings.strict import validated
from methods.framework.errors import ConfigError, RecordError, UnknownNameError
from methods.framework.outside import an_object, read_json
from sweeps.outcome import BEST, FRONT, MOST_KEPT, signs
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
    """Return plan files of a study, the best first.

    With one objective they are those of its best trials, with several those of its front, of which the best has the best
    first objective, and the next objective decides between equals.

    Args:
        config: the study.
        folder: its folder.
        top: how many; None: of one objective the best one, of several the front, but at most ``MOST``.

    Raises:
        RecordError: the file that lists them is missing or damaged.
        ConfigError: there are none, or fewer were kept than are asked for.
    """
    if len(config.labels) == 1 and (top is not None and top > 1):
        entries = _listed(config, folder / BEST)
        if top > len(entries) >= MOST_KEPT:
            raise ConfigError(
                f"study {config.name} keeps the plans of its {len(entries)} best trials, and {top} are asked for; ask for "
                f"fewer, or say `promote: {{top: {top}}}` in its file and start the sweep once more (no trial is repeated)"
            )
    else:
        entries = _listed(config, folder / FRONT)
        factors = signs(dict(zip(config.labels, config.directions, strict=True)))
        entries.sort(key=lambda one: (*(factor * one[1][label] for label, factor in factors.items()), one[0]))
    if not entries:
        raise ConfigError(
            f"study {config.name} has no complete trial yet; go on with its sweep (`moebench sweep FILE`)"
        )
    return [folder / file for _, _, file in entries[: MOST if top is None else top]]


def _listed(config: SweepConfig, path: Path) -> list[tuple[int, dict[str, float], str]]:
    """Return number, scores and plan file of the trials that a file lists, in its order."""
    remedy = "start the sweep once more (`moebench sweep FILE`), which writes it"
    document = an_object(read_json(path, RecordError, remedy, infinite=True), str(path), RecordError, remedy)
    try:
        return [
            (int(entry["trial"]), {label: float(entry["scores"][label]) for label in config.labels}, str(entry["file"]))
            for entry in document[path.stem]
        ]
    except (LookupError, TypeError, ValueError) as error:
        raise RecordError(
            f"{path} is not the {path.stem} of {config.name} ({type(error).__name__}: {error}); {remedy}"
        ) from error


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
        top: plans, the best first; None: as ``promote`` says, else the front, at most ``MOST``.
        plans: plan files instead of the study's.
        given: settings of a run that are other than those.

    Raises:
        ConfigError: no such study, a setting that is not allowed, or tasks that were an objective of the search.
        RecordError: the study has no readable front, or no list of its best trials.
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
        "trust_remote_code": config.trust_remote_code,
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
