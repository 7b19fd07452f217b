"""The study and its trials, as all workers see them; trials of workers that are gone are given back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.framework.errors import ConfigError, RecordError
from sweeps.deferred_signals import deferred_signals
from sweeps.sweep_config import SweepConfig

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

JOURNAL = "study.journal"
RETRIES = 2
"""Times that the parameters of a lost trial are tried again; a plan that exhausts memory would otherwise never end."""

CANCELLED = "cancelled"
"""Reason of a trial that its worker gave back itself; that is no failure, however often it happens."""


def open_study(config: SweepConfig, folder: Path) -> Study:
    """Open or create the study of ``config``; its files lie in ``folder``.

    Raises:
        ConfigError: the study was begun with other settings; names them.
        RecordError: the disk refuses, or the storage does not answer.
    """
    import optuna

    from sweeps.storages import answering, open_storage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / JOURNAL
    try:
        storage = open_storage(config.storage, path, config.stale_after, _queue_again)
        with answering(config.storage):
            study = optuna.create_study(
                study_name=config.name, storage=storage, directions=list(config.directions), load_if_exists=True
            )
    except OSError as error:
        raise RecordError(f"cannot open {path}: {error.strerror}; free space or choose another --store") from error
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
        if config.storage is not None:
            # Such as tables of another version of Optuna.
            raise RecordError(f"the study's storage cannot be used: {error}".splitlines()[0]) from error
        # Each line is JSON, but Optuna, which replays them, does not find in one what it wrote.
        raise _not_a_journal(path, error) from error
    with answering(config.storage), warnings.catch_warnings():
        # Optuna calls the names of objectives experimental; they are only shown, by its dashboard.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(config.labels))
        bind(study, "identity", config.identity(), path)
        try:
            _check_trials(study, config)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise _not_a_journal(path, error) from error
    return study


def _not_a_journal(path: Path, error: Exception) -> RecordError:
    from sweeps.storages import REMEDY

    return RecordError(f"{path} is not the journal of a study ({type(error).__name__}: {str(error)[:100]}); {REMEDY}")


def _check_trials(study: Study, config: SweepConfig) -> None:
    """Read everything that is read of trials later, which Optuna keeps without a look at it."""
    from sweeps.asking import earlier_attempts
    from sweeps.heartbeat import PROCESS, is_gone
    from sweeps.outcome import TrialRow

    for trial in study.get_trials(deepcopy=False):
        is_gone(trial.user_attrs.get(PROCESS, {}))
        [int(number) for number in earlier_attempts(trial)]
        TrialRow.of(trial).check(config.labels)


def bind(study: Study, name: str, value: Any, path: Path, what: str = "settings") -> None:
    """Attach ``value`` to a new study; of an old one, check that it is the same.

    Args:
        study: the study.
        name: of the value.
        value: JSON values.
        path: of the journal, for the message.
        what: the value holds, for the message.

    Raises:
        ConfigError: it differs; trials measured under different conditions do not belong in one study.
    """
    known = study.user_attrs.get(name)
    if known is None and study.get_trials(deepcopy=False):
        known = {}
    if known is None:
        study.set_user_attr(name, value)
    elif known != value:
        changes = "; ".join(_changes(known, value)) if known else f"it does not say which {what}"
        where = path.parent if path.exists() else "it from its storage (optuna delete-study)"
        raise ConfigError(
            f"study {study.study_name!r} was begun with other {what} ({changes}), and its trials would be mixed "
            f"with new ones. Give the sweep another name, take the {what} back, or remove {where}"
        )


def bind_code(study: Study, config: SweepConfig, folder: Path) -> None:
    """Bind a study to the libraries and the code that compute its trials.

    Args:
        study: the study.
        config: its sweep.
        folder: of the study.

    Raises:
        ConfigError: it was begun with others; they are named.
    """
    from sweeps.computed_by import computed_by

    bind(study, "computed by", computed_by(config), folder / JOURNAL, "libraries or code")


def reap(study: Study) -> None:
    """Fail every running trial whose worker is gone, and put its parameters back in the queue."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


def give_back(study: Study, trial: FrozenTrial) -> None:
    """Fail a trial of this process that is cancelled, and queue its parameters again; a further request to end waits for it."""
    import optuna
    from optuna.trial import TrialState

    with deferred_signals():
        try:
            study._storage.set_trial_user_attr(trial._trial_id, "reason", CANCELLED)
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        except optuna.exceptions.UpdateFinishedTrialError:
            return  # it was told, or taken for lost
        _queue_again(study, study._storage.get_trial(trial._trial_id))


def _queue_again(study: Study, trial: FrozenTrial) -> None:
    """Queue the parameters of a trial that failed for a reason outside of it; of a lost one, at most ``RETRIES`` times."""
    import copy

    import optuna

    from sweeps.asking import earlier_attempts
    from sweeps.heartbeat import BEAT, PROCESS

    again = copy.deepcopy(trial)
    again.user_attrs = {
        name: value for name, value in trial.user_attrs.items() if name not in (PROCESS, BEAT, "reason", "result")
    }
    if "fixed_params" in trial.system_attrs:
        # It was queued with these. What else it has may be the half of a draw.
        again.params, again.distributions = {}, {}
    attempts = {*earlier_attempts(trial), trial.number}
    cancelled = sum(
        other.number in attempts and other.user_attrs.get("reason") == CANCELLED for other in study.get_trials(False)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=RETRIES + cancelled)(study, again)


def missing_trials(study: Study, wanted: int) -> int:
    """Return how many complete trials the study lacks of those ``wanted``."""
    from optuna.trial import TrialState

    return max(0, wanted - len(study.get_trials(False, (TrialState.COMPLETE,))))


def running(study: Study) -> int:
    """Return how many trials are in some worker's hands."""
    from optuna.trial import TrialState

    return len(study.get_trials(False, (TrialState.RUNNING,)))


def _changes(old: Any, new: Any, where: str = "") -> list[str]:
    """Return "key: was a, is b" for each leaf that differs."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = ({str(number): value for number, value in enumerate(values)} for values in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            line for key in keys for line in _changes(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        ]
    return [] if old == new else [f"{where}: was {old!r}, is {new!r}"]
