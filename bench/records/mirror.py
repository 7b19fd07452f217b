"""The mirror: one W&B run for each record or study. Records are the truth; a failure here costs a warning, never a result.

The run of a record begins when the work on it begins, where it can: then stages, progress and system metrics come live. Whatever
keeps it from that, the run is made of the record in the end.
"""

from __future__ import annotations

import netrc
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlparse

from bench.records.live_run import LiveRun
from bench.records.record import Record
from bench.records.run_contents import Average, Beginning, fill
from methods.framework.errors import ConfigError

Fill = Callable[[Any, Any], None]
"""Puts into a run what it holds; called with the module wandb and the run."""

Mode = Literal["offline", "online", "disabled"]
MARKS = "mirrored"
"""Folder beside the runs with one empty file for each record or state of a study that was mirrored, named by it and the mode."""


class TrackingWarning(UserWarning):
    """A record or study could not be mirrored; it is complete all the same."""


class Tracker:
    """Mirrors records and studies to W&B; a context manager that starts W&B's service process once, with the first of them."""

    def __init__(
        self,
        mode: Mode | None = None,
        *,
        folder: Path,
        project: str = "moebench",
        group: str | None = None,
        average: Average | None = None,
    ) -> None:
        """Choose where runs go.

        Args:
            mode: None takes ``WANDB_MODE`` when set, else online where a key is found and offline otherwise.
            folder: parent of the ``wandb`` folder that offline runs are written to.
            project: W&B project.
            group: W&B group; None takes each record's own.
            average: the mean of a record's scores that tables show, for the summaries.

        Raises:
            ConfigError: online is asked for, here or by ``WANDB_MODE``, and there is no key.
        """
        self.mode: Mode = mode or _default_mode()
        if self.mode == "online" and not _has_key():
            raise ConfigError(
                "W&B is to be reached online, but there is no key; log in (`wandb login`), set WANDB_API_KEY, or choose offline"
            )
        self.folder, self.project, self.group, self.average = folder.resolve(), project, group, average
        self._live: dict[str, LiveRun] = {}
        self._lives = True

    @property
    def runs(self) -> Path:
        """Folder with one ``offline-run-*`` folder for each record, for `wandb sync`."""
        return self.folder / "wandb"

    def begin(self, row: Beginning) -> None:
        """Begin the run of a row, whose work begins; ``track`` ends it. A row whose run is open already goes on in it.

        Where that fails, the row and all later ones are mirrored when their records are there.
        """
        if self.mode == "disabled" or not self._lives or row.id in self._live:
            return
        try:
            with _environment(self.runs):
                self._live[row.id] = LiveRun.of(self._open(row.arguments(self.group), live=True))
        except Exception:  # as for ``mirror``, which will say what is wrong
            self._lives = False

    def tell(self, row: str, stage: str) -> None:
        """Note the stage of the row with id ``row``, if its run is open."""
        live = self._live.get(row)
        if live is None:
            return
        try:
            live.tell(stage)
        except Exception:  # likewise
            self._abandon(row)

    def track(self, record: Record, plan: str | None = None, base: Record | None = None) -> Path | None:
        """Mirror one record; one that was mirrored before in this mode and folder is not sent again.

        The run's id is the record's, without the number of the attempt, so a row that was interrupted or tried again stays one
        run: of its offline runs the last one holds everything, so an earlier one that nobody has synced goes.

        Args:
            record: the record.
            plan: the plan as JSON, kept as an artifact.
            base: record of the uncompressed model, for the share of its average that is left.

        Returns:
            The run's folder; None when disabled, done before, or failed (then with a warning that says what to do).
            When an online run fails, this one and the later ones go offline, with one warning.
        """
        row = Beginning.of(record)

        def filled(wandb: Any, run: Any) -> None:
            fill(wandb, run, record, plan, base, self.average)

        good = record.status in ("complete", "refused")
        return self.end(f"record {record.id}", record.id, row, filled, good=good)

    def end(self, what: str, mark: str, row: Beginning, filled: Fill, *, good: bool = True) -> Path | None:
        """End the run of a row that was begun, or make it as a whole where it was not; earlier offline runs of it go.

        Args:
            what: is mirrored, for warnings.
            mark: names its state.
            row: what it is of.
            filled: puts into it what is known in the end.
            good: whether it ended as it should.

        Returns:
            As ``track``.
        """
        folder = self._ended(row.id, mark, filled, good)
        if folder is None:
            folder = self.mirror(what, mark, row.arguments(self.group), filled)
        if folder is not None:
            self.remove_earlier(row.id, folder)
        return folder

    def _ended(self, row: str, mark: str, filled: Fill, good: bool) -> Path | None:
        """Return the folder of the row's open run after it was filled; None where there is none, or it failed."""
        live = self._live.get(row)
        if live is None or self._mark(mark).exists():
            self._abandon(row)
            return None
        import wandb

        try:
            with _environment(self.runs):
                filled(wandb, live.run)
                live.run.finish(exit_code=0 if good else 1)
        except Exception:  # it is mirrored as a whole instead
            self._abandon(row)
            return None
        del self._live[row]
        self._note(mark)
        return live.folder

    def _abandon(self, row: str) -> None:
        """End the open run of a row, if there is one, as one that was not finished."""
        live = self._live.pop(row, None)
        if live is not None:
            with suppress(Exception), _environment(self.runs):
                live.run.finish(exit_code=1)

    def remove_earlier(self, identifier: str, folder: Path) -> None:
        """Remove offline runs of the same id that ``folder`` replaces, unless they were synced."""
        for earlier in self.runs.glob(f"offline-run-*-{identifier}"):
            if earlier != folder and not any(earlier.glob("*.synced")):
                shutil.rmtree(earlier, ignore_errors=True)

    def mirror(self, what: str, mark: str, begun: Mapping[str, Any], fill: Fill) -> Path | None:
        """Make one run of W&B; what was mirrored before in this mode and folder, under that mark, is not sent again.

        Args:
            what: is mirrored, for warnings.
            mark: names its state.
            begun: name, group and whatever else begins the run.
            fill: puts the rest into it.

        Returns:
            As ``track``.
        """
        if self.mode == "disabled" or self._mark(mark).exists():
            return None
        # Anything may fail here (network, key, disk, service process, wandb itself), with errors of many kinds.
        try:
            return self._marked(mark, begun, fill)
        except Exception as error:
            reason = _first_line(error)
        if self.mode == "online":
            self.close()  # the service process still holds the run that failed, under the same id
            self.mode = "offline"
            try:
                if self._mark(mark).exists():
                    return None
                folder = self._marked(mark, begun, fill)
            except Exception as error:
                reason = f"{reason}; then offline: {_first_line(error)}"
            else:
                self._warn(
                    f"W&B did not take {what} ({reason}). This one and the following are kept in "
                    f"{self.runs}; check the network and the key (`wandb login`), then `wandb sync "
                    f"{self.runs}/offline-run-*`"
                )
                return folder
        self._warn(
            f"W&B did not take {what} ({reason}). The {what.split()[0]} itself is complete. Free space or choose "
            "another folder and track it again; mode disabled switches the mirror off"
        )
        return None

    def close(self) -> None:
        """End runs that are still open as not finished, and stop W&B's service process, if one was started."""
        import sys

        for row in list(self._live):
            self._abandon(row)

        module = sys.modules.get("wandb")
        if module is None:
            return
        try:
            with _environment(self.runs):
                module.teardown()
        except Exception as error:  # as above: closing the mirror must not cost a result either
            self._warn(f"W&B did not stop cleanly ({_first_line(error)}); nothing is lost")

    def __enter__(self) -> Self:
        """Return the tracker."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the service process."""
        self.close()

    def _marked(self, mark: str, begun: Mapping[str, Any], fill: Fill) -> Path:
        with _environment(self.runs):
            folder = self._run(begun, fill)
        self._note(mark)
        return folder

    def _note(self, mark: str) -> None:
        """Leave the empty file that says that this was mirrored."""
        self._mark(mark).parent.mkdir(parents=True, exist_ok=True)
        self._mark(mark).touch()

    @staticmethod
    def _warn(message: str) -> None:
        warnings.warn(message, TrackingWarning, stacklevel=3)

    def _run(self, begun: Mapping[str, Any], fill: Fill) -> Path:
        import wandb

        run = self._open(begun)
        try:
            folder = Path(run.settings.sync_dir)
            fill(wandb, run)
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish()
        return folder

    def _open(self, begun: Mapping[str, Any], live: bool = False) -> Any:
        """Return a new run; one that is ``live`` measures what the machine does meanwhile."""
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            project=self.project,
            dir=str(self.folder),
            mode=self.mode,
            # What was sent from elsewhere is overwritten with the same content instead of doubled.
            resume="allow" if self.mode == "online" else None,
            reinit="create_new",
            settings=_settings(wandb, live),
            **begun,
        )

    def _mark(self, mark: str) -> Path:
        return self.runs / MARKS / f"{mark}.{self.mode}"


def _settings(module: Any, live: bool) -> Any:
    """Return settings under which W&B stores what the record holds, and of a ``live`` run loads of the machine, not its name."""
    return module.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_stats=not live,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        disable_job_creation=True,
        host="",
        init_timeout=20.0,
    )


def _default_mode() -> Mode:
    chosen = os.environ.get("WANDB_MODE", "").lower()
    if chosen in ("offline", "online", "disabled"):
        return chosen  # type: ignore[return-value]  # narrowed by the line above
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    return bool(os.environ.get("WANDB_API_KEY")) or _in_netrc()


def _in_netrc() -> bool:
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def _environment(runs: Path) -> Iterator[None]:
    """Silence W&B and keep its files in ``runs``, by variables that it reads before any settings reach it."""
    ours = {
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
        "WANDB_ERROR_REPORTING": "false",
        # What a later `wandb sync` uploads must lie beside the runs, not in the home folder of this machine.
        "WANDB_DATA_DIR": str(runs / "data"),
        "WANDB_CACHE_DIR": str(runs / "cache"),
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
