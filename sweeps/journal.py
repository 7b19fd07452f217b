"""The study on disk: one Optuna journal file, mended after a crash, with the trials of dead workers given back.

A journal is several times cheaper than a database and works on shared file systems, but has no heartbeat: a trial whose
worker was killed stays in state RUNNING. Each trial therefore names its process, which is looked up before the next
trial.
"""

from __future__ import annotations

import os
import socket
import warnings
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from methods.framework.errors import ConfigError, RecordError
from methods.framework.outside import an_object, parse_json
from sweeps.sweep_config import SweepConfig

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

JOURNAL = "study.journal"
RETRIES = 2
"""Times that the parameters of a lost trial are tried again; a plan that exhausts memory would otherwise never end."""

_REMEDY = "restore it from a copy, or remove the study's folder and begin again"

_UNSIGNED_SECONDS = 60.0
"""A running trial that names no process is taken for lost after this time: its worker died between two writes."""


def open_study(config: SweepConfig, folder: Path) -> Study:
    """Open or create the study of ``config`` in ``folder``.

    Raises:
        ConfigError: the study was begun with other settings; names them.
        RecordError: the disk refuses.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / JOURNAL
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = JournalFileSymlinkLock(str(path), grace_period=10)
        _mend(path, lock)
        storage = JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
        study = optuna.create_study(
            study_name=config.name, storage=storage, directions=list(config.directions), load_if_exists=True
        )
    except OSError as error:
        raise RecordError(f"cannot open {path}: {error.strerror}; free space or choose another --store") from error
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
        # Each line is JSON, but Optuna, which replays them, does not find in one what it wrote.
        raise _not_a_journal(path, error) from error
    with warnings.catch_warnings():
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
    return RecordError(f"{path} is not the journal of a study ({type(error).__name__}: {str(error)[:100]}); {_REMEDY}")


def _check_trials(study: Study, config: SweepConfig) -> None:
    """Read everything that is read of trials later, which Optuna keeps without a look at it."""
    from sweeps.outcome import TrialRow

    for trial in study.get_trials(deepcopy=False):
        _is_lost(trial, config.stale_after)
        int(trial.user_attrs.get("retry", 0))
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
        raise ConfigError(
            f"study {study.study_name!r} was begun with other {what} ({changes}), and its trials would be mixed "
            f"with new ones. Give the sweep another name, take the {what} back, or remove {path.parent}"
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


def sign(trial_number: int, study: Study) -> None:
    """Write into a running trial which process works on it."""
    process = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    study._storage.set_trial_user_attr(_identifier(study, trial_number), "process", process)


def reap(study: Study, stale_after: float) -> list[int]:
    """Fail every running trial whose worker is gone, put its parameters back in the queue, and return their numbers.

    A worker on this host is gone when its process is; of another host, when the trial runs longer than ``stale_after``
    seconds.
    """
    from optuna.trial import TrialState

    lost = [trial for trial in study.get_trials(False, (TrialState.RUNNING,)) if _is_lost(trial, stale_after)]
    for trial in lost:
        give_back(study, trial, "the worker was killed")
    return [trial.number for trial in lost]


def give_back(study: Study, trial: FrozenTrial, reason: str) -> None:
    """Fail ``trial`` for a reason outside of it, and queue its parameters again, at most ``RETRIES`` times.

    Args:
        study: the study.
        trial: a running one.
        reason: for its row.
    """
    from optuna.trial import TrialState

    again = int(trial.user_attrs.get("retry", 0)) + 1
    queued = again <= RETRIES and bool(trial.params)
    study._storage.set_trial_user_attr(trial._trial_id, "reason", reason)
    study._storage.set_trial_user_attr(trial._trial_id, "queued_again", queued)
    study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    if queued:
        study.enqueue_trial(trial.params, user_attrs={"retry": again, "retry_of": trial.number})


def missing_trials(study: Study, wanted: int) -> int:
    """Return how many complete trials the study lacks of those ``wanted``."""
    from optuna.trial import TrialState

    return max(0, wanted - len(study.get_trials(False, (TrialState.COMPLETE,))))


def running(study: Study) -> int:
    """Return how many trials are in some worker's hands."""
    from optuna.trial import TrialState

    return len(study.get_trials(False, (TrialState.RUNNING,)))


def draws(study: Study) -> int:
    """Return the number of trials drawn so far; one that was lost and queued again counts once."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    return sum(t.state != TrialState.WAITING and not t.user_attrs.get("queued_again") for t in trials)


def _identifier(study: Study, number: int) -> int:
    return study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)


def _is_lost(trial: FrozenTrial, stale_after: float) -> bool:
    age = (datetime.now() - trial.datetime_start).total_seconds() if trial.datetime_start else 0.0
    process = trial.user_attrs.get("process")
    if process is None:
        return age > _UNSIGNED_SECONDS
    if process["host"] != socket.gethostname():
        return age > stale_after
    try:
        running = psutil.Process(process["pid"])
        # The same number may belong to a younger process by now; a killed child that nobody waited for is a zombie.
        return bool(running.create_time() != process["started"] or running.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _mend(path: Path, lock: Any) -> None:
    """Cut off a last line that a killed process left unfinished; a line appended to it would spoil the whole file.

    Raises:
        RecordError: another line is damaged.
    """
    if not path.exists():
        return
    lock.acquire()
    try:
        with path.open("rb+") as file:
            content = file.read()
            complete = content.rfind(b"\n") + 1
            for number, line in enumerate(content[:complete].splitlines(), start=1):
                what = f"line {number} of {path}"
                an_object(parse_json(line, what, RecordError, _REMEDY, infinite=True), what, RecordError, _REMEDY)
            if complete < len(content):
                file.truncate(complete)
    finally:
        lock.release()


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
