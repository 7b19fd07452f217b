"""The main job on a pocket model: rows that finish, refuse and fail; records; resuming; nothing lost when it is killed."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from bench.checkpoint.checkpoint import Checkpoint
from bench.pocket import write_tasks
from bench.records.mirror import Tracker
from bench.records.record import Record, read_records, write_record
from bench.running.run import Run
from bench.running.subject import Subject
from bench.settings.method_settings import MethodConfig
from bench.settings.recovery import RecoverySettings
from bench.settings.run_settings import RunConfig
from bench.settings.stage_settings import Bos, CalibrationConfig, EvaluationConfig
from bench.settings.timing_settings import TimingConfig
from bench.store.store import Store
from methods.framework.errors import CheckpointError, ConfigError, EvaluationError, UnknownNameError

TASKS = ("pocket_agreement", "pocket_facts")


def config(folder: Path, *methods: MethodConfig, **changes: object) -> RunConfig:
    settings: dict[str, object] = {
        "model": "pocket-mixtral",
        "methods": methods,
        "calibration": settings_of(),
        "evaluation": EvaluationConfig(tasks=TASKS, include_path=write_tasks(folder / "tasks"), limit=8),
        "timing": TimingConfig(enabled=False),
        **changes,
    }
    return RunConfig.model_validate(settings)


def settings_of(**changes: object) -> CalibrationConfig:
    return CalibrationConfig.model_validate({"corpus": "pocket", "sequences": 8, "length": 64, **changes})


def execute(settings: RunConfig, store: Path) -> tuple[list[Record], list[str]]:
    stages_seen: list[str] = []

    def report(subject: Subject, stage: str) -> None:
        stages_seen.append(f"{subject.title}: {stage.split()[0]}")

    with Tracker("disabled", folder=store) as tracker:
        return Run(settings, Store(store), tracker, report).execute(), stages_seen


REAP = MethodConfig(name="reap", knobs={"keep": 0.5})
IMPOSSIBLE = MethodConfig(name="frequency", knobs={"keep": 0.1})


def test_rows_finish_or_refuse_and_are_recorded_once(tmp_path: Path) -> None:
    settings = config(tmp_path, REAP, IMPOSSIBLE)
    records, _ = execute(settings, tmp_path)
    base, reap, refused = records
    assert (base.method, base.status, base.ratios and base.ratios.count) == (None, "complete", 0.0)
    assert reap.status == "complete" and reap.ratios is not None and reap.ratios.count == 0.5
    assert refused.status == "refused" and "smallest keep is 0.25" in (refused.reason or "")
    assert [one.stages for one in records] == [(), ("experts",), ("experts",)]
    assert {score.task for score in reap.scores} == set(TASKS)
    assert all(score.n == 8 and score.paired is not None for score in reap.scores)
    assert all(score.paired is None for score in base.scores)
    assert reap.corpus is not None and reap.corpus.tokens == 8 * 64 and base.corpus is None
    assert (tmp_path / "items" / reap.id).is_dir() and (tmp_path / "plans" / f"{reap.plan}.json").is_file()
    card = next((tmp_path / "checkpoints").glob("*/README.md"))
    assert (
        f"| pocket_facts | acc | {next(one.value for one in reap.scores if one.task == 'pocket_facts'):.4f}"
        in card.read_text()
    )
    assert "the first 8 items of each task" in card.read_text()
    assert Checkpoint.open(card.parent).content, "a card is no part of what is compared"
    again, seen = execute(settings, tmp_path)
    assert again == records, "the second call reads what the first one wrote"
    assert seen == ["base: complete", "REAP: complete", "Frequency: refused"], "and does nothing else"
    assert list(read_records(tmp_path / "records")) == sorted(records, key=lambda record: record.id)


def test_a_record_tells_how_alike_the_experts_are_where_its_method_compared_them(tmp_path: Path) -> None:
    merge = MethodConfig(name="cka_merge", knobs={"keep": 0.5, "router": "map"})
    mone = MethodConfig(name="mone", knobs={"keep": 0.5})
    records, _ = execute(config(tmp_path, REAP, merge, mone), tmp_path)
    base, reap, merged, replaced = records
    assert [(one.similarity, one.groups) for one in (base, reap, replaced)] == [((), {})] * 3, (
        "others share the pass alone"
    )
    assert [(one.layer, one.statistic, one.experts) for one in merged.similarity] == [
        (n, "output_cka", 8) for n in range(6)
    ]
    for one in merged.similarity:
        pairs = [int(part) / 100 for part in (one.pairs or "").split()]
        assert len(pairs) == 28 and sum(pairs) / 28 == pytest.approx(one.mean, abs=0.005)
    assert sorted(merged.groups) == list(range(6))
    assert all(sum(sizes) == 8 and len(sizes) == 4 for sizes in merged.groups.values())
    assert [one.replaced for one in records] == [0, 0, 0, 24]
    one_by_one = config(tmp_path, merge, calibration=settings_of(propagation="sequential"))
    assert execute(one_by_one, tmp_path)[0][1].similarity == (), "statistics of a model that is compressed in part"


def test_records_keep_how_windows_begin_and_what_was_mixed(tmp_path: Path) -> None:
    def found(corpus: str, bos: Bos) -> Record:
        calibration = CalibrationConfig(corpus=corpus, sequences=4, length=16, bos=bos)
        return execute(config(tmp_path, REAP, calibration=calibration, evaluation=EvaluationConfig()), tmp_path)[0][1]

    plain, begun = found("pocket", "as evaluated"), found("pocket=1", "always")
    assert plain.corpus is not None and begun.corpus is not None
    assert (plain.corpus.opening, plain.corpus.sources) == ((), {})
    assert (begun.corpus.opening, begun.corpus.sources) == ((1,), {"pocket": 4})
    assert begun.id != plain.id and begun.corpus.digest != plain.corpus.digest
    assert found("pocket=1", "never").id == plain.id, "what decides is the tokens, not how they were asked for"


def test_two_runs_share_stages(tmp_path: Path) -> None:
    execute(config(tmp_path, REAP), tmp_path)
    before = sorted(path.name for path in (tmp_path / "cache" / "stats").iterdir())
    man = MethodConfig(name="man", knobs={"keep": 0.5})
    _, seen = execute(config(tmp_path, REAP, man), tmp_path)
    assert "REAP: complete" in seen and "REAP: evaluate" not in seen and "MAN: evaluate" in seen
    assert sorted(path.name for path in (tmp_path / "cache" / "stats").iterdir()) == before, "one pass serves both"


def test_a_failure_ends_its_row_only_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> Path:
        raise CheckpointError("the disk is full")

    man = MethodConfig(name="man", knobs={"keep": 0.5})
    with monkeypatch.context() as broken:
        broken.setattr("bench.running.run.write_checkpoint", full_disk)
        records, _ = execute(config(tmp_path, REAP, man), tmp_path)
    assert [record.status for record in records] == ["complete", "failed", "failed"]
    assert records[1].reason == "the disk is full"
    records, seen = execute(config(tmp_path, REAP, man), tmp_path)
    assert [record.status for record in records] == ["complete"] * 3
    assert records[1].id.endswith("-2") and "base: evaluate" in seen


def test_sequential_propagation_is_for_layerwise_methods(tmp_path: Path) -> None:
    calibration = CalibrationConfig(corpus="pocket", sequences=8, length=64, propagation="sequential")
    drop = MethodConfig(name="layer_drop")
    records, _ = execute(config(tmp_path, REAP, drop, calibration=calibration), tmp_path)
    assert records[1].status == "complete" and records[1].corpus is not None
    assert records[1].corpus.propagation == "sequential"
    assert records[2].status == "refused" and "all layers at once" in (records[2].reason or "")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "pocket-mixtrall"}, CheckpointError, "pocket-mixtrall"),
        ({"methods": (MethodConfig(name="reep"),)}, UnknownNameError, "did you mean 'reap'"),
        ({"evaluation": EvaluationConfig(tasks=("pocket_fact",))}, EvaluationError, "pocket_fact"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    if "evaluation" in changes:
        local = EvaluationConfig(tasks=("pocket_fact",), include_path=write_tasks(tmp_path / "tasks"))
        changes = {"evaluation": local}
    with pytest.raises(error, match=message):
        execute(config(tmp_path, **changes), tmp_path / "store")
    assert not (tmp_path / "store" / "records").exists()


MARKS = (
    "base: evaluate",
    "REAP: calibrate",
    "REAP: plan",
    "REAP: apply",
    "REAP: evaluate pocket_facts",
    "MAN: apply",
    "MAN: evaluate",
    "base: complete",
    "REAP: complete",
)
"""What the run says when a stage begins, in the middle of scoring, and when a record is written."""


def announced(settings: RunConfig, store: Path, marks: Connection) -> None:
    """Run in a process of its own, and say every stage."""
    with Tracker("disabled", folder=store) as tracker:
        Run(settings, Store(store), tracker, lambda subject, stage: marks.send(f"{subject.title}: {stage}")).execute()


@pytest.mark.e2e
def test_killed_at_every_stage_it_goes_on(tmp_path: Path) -> None:
    settings, store = config(tmp_path, REAP, MethodConfig(name="man", knobs={"keep": 0.5})), tmp_path / "store"
    server = multiprocessing.get_context("forkserver")  # which imports once, and forks a run from there
    server.set_forkserver_preload(["bench.running.run", "bench.calibration.calibrate", "bench.models.load"])
    for mark in MARKS:
        said, told = server.Pipe(duplex=False)
        child = server.Process(target=announced, args=(settings, store, told))
        child.start()
        told.close()
        while not said.recv().startswith(mark):  # the end of a run that never says it is an EOFError
            pass
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        records = list(read_records(store / "records")) if (store / "records").exists() else []
        assert all(record.status == "complete" for record in records), "a record is whole or not there"
        if mark.startswith("MAN"):
            assert {record.title for record in records} >= {"base", "REAP"}, "what had ended stays"
    heard, told = server.Pipe(duplex=False)
    child = server.Process(target=announced, args=(settings, store, told))
    child.start()
    child.join()
    assert child.exitcode == 0 and heard.recv() == "base: complete (earlier)"
    records = list(read_records(store / "records"))
    clean, _ = execute(settings, tmp_path / "clean")
    scores = {record.title: [score.value for score in record.scores] for record in records}
    assert scores == {record.title: [score.value for score in record.scores] for record in clean}
    assert sorted(scores) == ["MAN", "REAP", "base"] and len(records) == 3


def test_a_recipe_is_a_row_like_any_other(tmp_path: Path) -> None:
    steps = [
        REAP.model_dump() | {"knobs": {"keep": 0.75}},
        {"name": "layer_drop", "knobs": {"keep": 0.83}, "recalibrate": True},
    ]
    settings = config(tmp_path, recipes=[{"title": "REAP, then Layer Drop", "steps": steps}])
    records, seen = execute(settings, tmp_path)
    _, record = records
    assert (record.method, record.title, record.status) == ("recipe", "REAP, then Layer Drop", "complete")
    assert record.stages == ("sublayers", "experts")
    assert record.knobs["1.reap.keep"] == 0.75 and record.knobs["2.layer_drop.recalibrate"] is True
    assert record.cost is not None and record.cost.experts == 5 * 6, "five of six layers, six of eight experts"
    assert record.corpus is not None and "REAP, then Layer Drop: evaluate" in seen
    assert execute(settings, tmp_path)[0] == records


def test_of_two_equal_runs_the_slower_takes_the_record_of_the_faster(tmp_path: Path) -> None:
    settings = config(tmp_path, REAP)
    with Tracker("disabled", folder=tmp_path) as tracker:
        slow = Run(settings, Store(tmp_path), tracker)
        slow._identify()
        faster, _ = execute(settings, tmp_path)
        todo = [subject for subject in slow.subjects if subject.record is None]
        assert len(todo) == 2, "it began before the other one ended"
        for subject in todo:
            slow._evaluate(subject) if subject.method is None else slow._decide(subject)
            slow._record(subject)
        assert [subject.record for subject in slow.subjects] == faster
        (failed,) = (subject for subject in slow.subjects if subject.method is not None)
        worse = faster[1].model_copy(update={"id": "f" * 16, "status": "failed", "reason": "a full disk"})
        write_record(worse, tmp_path / "records")
        better = slow._settled(failed, faster[1].model_copy(update={"id": worse.id}))
        assert (better.id, better.status) == (f"{worse.id}-2", "complete"), "a failure is no result to take over"


def test_what_cannot_work_is_known_before_the_base_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.framework.method.Method.refuse", lambda self, inventory: "it has stripes")
    _, seen = execute(config(tmp_path, REAP), tmp_path / "refused")
    assert seen[0] == "REAP: refused" and seen.index("base: evaluate") > 0
    monkeypatch.undo()
    missing = CalibrationConfig(corpus=str(tmp_path / "nowhere.txt"))
    with pytest.raises(ConfigError, match="no such file"):
        execute(config(tmp_path, REAP, calibration=missing), tmp_path / "store")
    training = RecoverySettings(kind="full", corpus=str(tmp_path / "nowhere.txt"))
    _, seen = execute(config(tmp_path, REAP, recovery=training), tmp_path / "store")
    assert seen[0] == "REAP + fine-tuning: failed"
