"""The mirror: one W&B run for each record or study. Records are the truth; a failure here costs a warning, never a result."""

from __future__ import annotations

import json
import netrc
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlparse

from bench.records.record import Record
from methods.framework.errors import ConfigError

if TYPE_CHECKING:
    import wandb

Fill = Callable[[Any, Any], None]
"""Puts into a run what it holds; called with the module wandb and the run."""

Mode = Literal["offline", "online", "disabled"]
MARKS = "mirrored"
"""Folder beside the runs with one empty file for each record or state of a study that was mirrored, named by it and the mode."""

_COLUMNS = (
    "task",
    "metric",
    "filter",
    "value",
    "stderr",
    "n",
    "higher_is_better",
    "version",
    "difference",
    "low",
    "high",
    "p",
    "test",
)


class TrackingWarning(UserWarning):
    """A record or study could not be mirrored; it is complete all the same."""


class Tracker:
    """Mirrors records and studies to W&B; a context manager that starts W&B's service process once, with the first of them."""

    def __init__(
        self, mode: Mode | None = None, *, folder: Path, project: str = "moebench", group: str | None = None
    ) -> None:
        """Choose where runs go.

        Args:
            mode: None takes ``WANDB_MODE`` when set, else online where a key is found and offline otherwise.
            folder: parent of the ``wandb`` folder that offline runs are written to.
            project: W&B project.
            group: W&B group; None takes each record's own.

        Raises:
            ConfigError: online is asked for, here or by ``WANDB_MODE``, and there is no key.
        """
        self.mode: Mode = mode or _default_mode()
        if self.mode == "online" and not _has_key():
            raise ConfigError(
                "W&B is to be reached online, but there is no key; log in (`wandb login`), set WANDB_API_KEY, or choose offline"
            )
        self.folder, self.project, self.group = folder.resolve(), project, group

    @property
    def runs(self) -> Path:
        """Folder with one ``offline-run-*`` folder for each record, for `wandb sync`."""
        return self.folder / "wandb"

    def track(self, record: Record, plan: str | None = None) -> Path | None:
        """Mirror one record; one that was mirrored before in this mode and folder is not sent again.

        The run's id is the record's, so even a second sending would not make a second run.

        Args:
            record: the record.
            plan: the plan as JSON, kept as an artifact.

        Returns:
            The run's folder; None when disabled, done before, or failed (then with a warning that says what to do).
            When an online run fails, this one and the later ones go offline, with one warning.
        """
        begun = {
            "group": self.group or record.group,
            "id": record.id,
            "name": f"{record.model.name} {record.title}",
            "job_type": record.status,
            "tags": [record.model.family, record.method or "base"],
            "config": configuration(record),
        }
        return self.mirror(f"record {record.id}", record.id, begun, lambda wandb, run: _fill(wandb, run, record, plan))

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
        """Stop W&B's service process, if one was started."""
        import sys

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
        self._mark(mark).parent.mkdir(parents=True, exist_ok=True)
        self._mark(mark).touch()
        return folder

    @staticmethod
    def _warn(message: str) -> None:
        warnings.warn(message, TrackingWarning, stacklevel=3)

    def _run(self, begun: Mapping[str, Any], fill: Fill) -> Path:
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self.project,
            dir=str(self.folder),
            mode=self.mode,
            # What was sent from elsewhere is overwritten with the same content instead of doubled.
            resume="allow" if self.mode == "online" else None,
            reinit="create_new",
            settings=_settings(wandb),
            **begun,
        )
        try:
            folder = Path(run.settings.sync_dir)
            fill(wandb, run)
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish()
        return folder

    def _mark(self, mark: str) -> Path:
        return self.runs / MARKS / f"{mark}.{self.mode}"


def configuration(record: Record) -> dict[str, Any]:
    """Return what determined the run: model, method, knobs, corpus, seeds, environment, and the study that found its plan."""
    keep = {
        "id",
        "model",
        "corpus",
        "method",
        "title",
        "knobs",
        "plan",
        "realisation",
        "seeds",
        "environment",
        "created",
    }
    told = {**record.model_dump(mode="json", include=keep), "schema": record.schema_version}
    return told if record.found_by is None else {**told, "found_by": record.found_by.model_dump(mode="json")}


def summary(record: Record) -> dict[str, Any]:
    """Return the run's numbers by name: scores, ratios, cost, timing, seconds; fields without a value are left out."""
    numbers: dict[str, Any] = {"status": record.status, "reason": record.reason}
    for score in record.scores:
        name = f"score/{score.task}/{score.metric}" + ("" if score.filter == "none" else f"/{score.filter}")
        numbers[name] = score.value
        numbers[f"{name}_stderr"] = score.stderr
        if score.paired is not None:
            numbers[f"{name}_difference"] = score.paired.difference
    for group, part in (("cost", record.cost), ("ratio", record.ratios)):
        numbers |= {} if part is None else {f"{group}/{name}": value for name, value in part.model_dump().items()}
    if record.timing is not None:
        for name, value in record.timing.model_dump(exclude={"protocol", "marks", "batches", "online"}).items():
            numbers |= (
                {f"timing/{name}/{k}": v for k, v in value.items()}
                if isinstance(value, dict)
                else {f"timing/{name}": value}
            )
    numbers |= {f"seconds/{stage}": value for stage, value in record.seconds.items()}
    return {name: value for name, value in numbers.items() if value is not None}


def score_rows(record: Record) -> list[list[Any]]:
    """Return one row for each score, in the order of the table's columns."""
    rows = []
    for score in record.scores:
        fields = {
            **(score.paired.model_dump() if score.paired else {}),
            **score.model_dump(exclude={"paired", "digest"}),
        }
        rows.append([fields.get(column) for column in _COLUMNS])
    return rows


def _fill(module: Any, run: wandb.Run, record: Record, plan: str | None) -> None:
    """Put what the record holds into its run."""
    if record.scores:
        run.log({"scores": module.Table(columns=list(_COLUMNS), data=score_rows(record))})
    run.summary.update(summary(record))
    _attach(module, run, record, plan)


def _attach(module: Any, run: wandb.Run, record: Record, plan: str | None) -> None:
    """Attach the record and the plan as artifacts; the plan's is named by its digest, so that equal plans share one.

    The files lie in the run's own folder, so `wandb sync` finds them there later and nothing is staged elsewhere.
    """
    texts = {"record": json.dumps(record.model_dump(mode="json", by_alias=True), indent=2, sort_keys=True) + "\n"}
    names = {"record": f"record-{record.id}"}
    if plan is not None and record.plan is not None:
        texts["plan"], names["plan"] = plan, f"plan-{record.plan[:16]}"
    for kind, text in texts.items():
        path = Path(run.dir) / f"{kind}.json"
        path.write_text(text)
        artifact = module.Artifact(names[kind], type=kind)
        artifact.add_file(str(path), name=path.name, policy="immutable")
        run.log_artifact(artifact)


def _settings(module: Any) -> Any:
    """Return settings under which W&B stores what the record holds, and nothing about the machine."""
    return module.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_stats=True,
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
