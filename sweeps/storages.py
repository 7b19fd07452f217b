"""The storage of a study by its URL; every kind has a heartbeat, and one error when it does not answer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import optuna
from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.storages.journal._storage import JournalOperation

from methods.framework.errors import RecordError
from methods.framework.outside import an_object, parse_json
from sweeps.deferred_signals import deferred_signals
from sweeps.heartbeat import SILENCES, AttributeHeartbeat, Database, OnStale
from sweeps.storage_url import address, resolved_storage, without_password

REMEDY = "restore it from a copy, or remove the study's folder and begin again"

_LOCK_SECONDS = 10
"""Seconds after which a lock on the journal is that of a process that died."""

_CONNECT_SECONDS = 10.0


class _Backend(JournalFileBackend):
    """A journal file whose lock is never left half released by a signal."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines; a request to end is answered afterwards."""
        with deferred_signals():
            super().append_logs(logs)


class Journal(AttributeHeartbeat, JournalStorage):
    """A journal file with a heartbeat."""

    def set_trial_user_attrs(self, trial_id: int, values: Mapping[str, Any]) -> None:
        """Set several attributes of a trial in one write, which is synced to the disk."""
        logs = [
            {
                "op_code": JournalOperation.SET_TRIAL_USER_ATTR,
                "worker_id": self._replay_result.worker_id,
                "trial_id": trial_id,
                "user_attr": {name: value},
            }
            for name, value in values.items()
        ]
        refused: UpdateFinishedTrialError | None = None
        with self._thread_lock:
            self._backend.append_logs(logs)
            for _ in logs:  # where others have finished the trial, each line is refused when it is read back
                try:
                    self._sync_with_backend()
                    break
                except UpdateFinishedTrialError as error:
                    refused = error
        if refused is not None:
            raise refused


def set_user_attrs(study: Study, trial_id: int, values: Mapping[str, Any]) -> None:
    """Set several attributes of a trial, in one write where the storage can.

    Args:
        study: the study.
        trial_id: of the trial in its storage.
        values: JSON values by name.
    """
    storage = study._storage
    if isinstance(storage, Journal):
        storage.set_trial_user_attrs(trial_id, values)
        return
    for name, value in values.items():
        storage.set_trial_user_attr(trial_id, name, value)


class Proxy(AttributeHeartbeat, GrpcStorageProxy):
    """A gRPC proxy with a heartbeat; Optuna's has none, whatever lies behind it."""


def open_storage(storage: str | None, journal: Path, grace: float, on_stale: OnStale) -> BaseStorage:
    """Open where trials are kept.

    Args:
        storage: what the sweep file says, None for the journal.
        journal: path of the journal file.
        grace: seconds without a sign of life until a trial is lost.
        on_stale: what is done with it then.

    Raises:
        ConfigError: an environment variable is missing.
        RecordError: the storage does not answer, or the journal is damaged.
    """
    if storage is None:
        return _journal(journal).watched(grace, on_stale)
    url = resolved_storage(storage)
    with answering(storage), warnings.catch_warnings():
        # Optuna calls heartbeats and the proxy experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        scheme, host, port = address(url)
        if scheme == "grpc":
            proxy = Proxy(host=host, port=port)
            proxy.wait_server_ready(_CONNECT_SECONDS)
            return proxy.watched(grace, on_stale)
        return Database("postgresql+psycopg:" + url.partition(":")[2], grace, on_stale)


@contextmanager
def answering(storage: str | None) -> Iterator[None]:
    """Turn what a storage raises that does not answer into one error without its password.

    Raises:
        RecordError: it does not answer.
    """
    try:
        yield
    except SILENCES as error:
        if storage is None:
            raise
        url = resolved_storage(storage)
        found = without_password(_told(error), url)
        raise RecordError(
            f"the study's storage {without_password(storage, url)} does not answer ({found}); see that it runs and that "
            "its address is right, and start the same sweep again: complete trials are kept"
        ) from error


def _told(error: Any) -> str:
    """Return the innermost reason in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = error.details() if isinstance(error, grpc.Call) else str(error)
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _journal(path: Path) -> Journal:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileSymlinkLock(str(path), grace_period=_LOCK_SECONDS)
    _mend(path, lock)
    return Journal(_Backend(str(path), lock_obj=lock))


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
                an_object(parse_json(line, what, RecordError, REMEDY, infinite=True), what, RecordError, REMEDY)
            if complete < len(content):
                file.truncate(complete)
    finally:
        lock.release()
