"""Signs of life: a worker renews one on its trial, and whoever sees none for a while gives the trial back.

PostgreSQL has Optuna's heartbeat. A journal file and the gRPC proxy have none: there it is an attribute of the trial. No
clock of another machine is read: a sign counts as old when the one who looks has seen the same for long enough. On the same
machine nobody waits: the process is looked up.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import psutil
import sqlalchemy
from optuna import Study
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import FrozenTrial, TrialState

SILENCES = (StorageInternalError, sqlalchemy.exc.SQLAlchemyError, grpc.RpcError, OSError)
"""What storages raise that do not answer."""

PROCESS, BEAT = "process", "beat"
"""Attributes of a trial: the process that works on it, and its sign of life."""

OnStale = Callable[[Study, FrozenTrial], None]


@cache
def process_space() -> str:
    """Return what two processes have in common when each can look the other up by its number: host, boot, name space.

    Containers may share the host's name, and machines the number of their first name space.
    """
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return "/".join(parts)


def signature() -> dict[str, Any]:
    """Return what a trial says about this process."""
    return {"space": process_space(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def is_gone(process: dict[str, Any]) -> bool | None:
    """Return whether a process that signed has ended, None where it cannot be looked up from here."""
    if process.get("space") != process_space():
        return None
    try:
        running = psutil.Process(process["pid"])
        # The same number may belong to a younger process by now; a killed child that nobody waited for is a zombie.
        return bool(running.create_time() != process["started"] or running.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class Watch:
    """Remembers since when each trial has shown the same sign of life, by this process's own clock."""

    def __init__(self, grace: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Watch.

        Args:
            grace: seconds until a sign that is not renewed is old.
            clock: returns seconds.
        """
        self._grace, self._clock = grace, clock
        self._seen: dict[int, tuple[Hashable, float]] = {}

    def is_old(self, trial: int, sign: Hashable) -> bool:
        """Return whether ``trial`` has shown this very sign for too long."""
        now = self._clock()
        known, since = self._seen.get(trial, (None, now))
        if trial not in self._seen or known != sign:
            self._seen[trial] = (sign, now)
            return False
        return now - since > self._grace


class AttributeHeartbeat(BaseHeartbeat, BaseStorage):
    """Optuna's heartbeat for a storage that has none; a mixin."""

    def watched(self, grace: float, on_stale: OnStale) -> Self:
        """Set the seconds after which a trial counts as lost, and what is done with it then; return the storage."""
        self._watch, self._interval, self._on_stale = Watch(grace), max(1, round(grace / 6)), on_stale
        self._beats = 0
        return self

    def record_heartbeat(self, trial_id: int) -> None:
        """Renew the sign of life of a trial."""
        self._beats += 1
        self.set_trial_user_attr(trial_id, BEAT, self._beats)

    def get_heartbeat_interval(self) -> int | None:
        """Return the seconds between two signs of life."""
        return self._interval

    def get_heartbeat_stale_trial_callback(self) -> OnStale | None:
        """Return what is done with a lost trial."""
        return self._on_stale

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        return [trial._trial_id for trial in running if self._is_stale(trial)]

    def _is_stale(self, trial: FrozenTrial) -> bool:
        process = trial.user_attrs.get(PROCESS)
        gone = None if process is None else is_gone(process)
        old = self._watch.is_old(trial._trial_id, (str(process), trial.user_attrs.get(BEAT)))
        return old if gone is None else gone


class Database(RDBStorage):
    """PostgreSQL with Optuna's heartbeat, which waits even where the process can be looked up, and overlooks a trial whose
    worker died before its first sign of life."""

    def __init__(self, url: str, grace: float, on_stale: OnStale) -> None:
        """Connect, and make the tables where there are none.

        Args:
            url: of the database.
            grace: seconds without a sign of life until a trial is lost.
            on_stale: what is done with it then.
        """
        super().__init__(
            url,
            engine_kwargs={"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}},
            heartbeat_interval=max(1, round(grace / 6)),
            grace_period=max(1, round(grace)),
            heartbeat_stale_trial_callback=on_stale,
        )
        self._watch = Watch(grace)
        self._noted: set[int] = set()

    def record_heartbeat(self, trial_id: int) -> None:
        """Renew the sign of life of a trial, and note that it has one."""
        super().record_heartbeat(trial_id)
        if trial_id not in self._noted:
            self.set_trial_user_attr(trial_id, BEAT, True)
            self._noted.add(trial_id)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        return [*{*super()._get_stale_trial_ids(study_id), *(t._trial_id for t in running if self._is_stale(t))}]

    def _is_stale(self, trial: FrozenTrial) -> bool:
        process = trial.user_attrs.get(PROCESS)
        if process is not None and is_gone(process):
            return True
        return BEAT not in trial.user_attrs and self._watch.is_old(trial._trial_id, None)


class Pulse:
    """Renews the sign of life of one trial from a thread; a context manager."""

    def __init__(self, storage: Any, trial_id: int) -> None:
        """Prepare.

        Args:
            storage: with a heartbeat; another gets none.
            trial_id: of the trial.
        """
        self._storage, self._trial_id, self._end = storage, trial_id, threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        if isinstance(self._storage, BaseHeartbeat):
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _beat(self) -> None:
        interval = self._storage.get_heartbeat_interval()
        while True:
            try:
                with suppress(*SILENCES):  # a storage that does not answer for a moment
                    self._storage.record_heartbeat(self._trial_id)
            except UpdateFinishedTrialError:
                return  # it was taken for lost, which its worker notices when it tells the result
            if self._end.wait(interval):
                return
