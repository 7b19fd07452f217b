"""The main job: one model, several methods; every one planned, applied, evaluated, timed, recorded and mirrored.

Quality comes first for all methods, then the timings in one session (the engine is imported once). A record is written as soon
as the last stage of its row has ended, and each stage is cached by content, so the same command goes on after any interruption.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

from bench.cards.model_card import write_card
from bench.checkpoint.checkpoint import Checkpoint
from bench.checkpoint.content import stated_digest
from bench.checkpoint.tokenizer_files import open_tokenizer
from bench.evaluation.evaluate import check_tasks
from bench.evaluation.generation import generation_of
from bench.evaluation.items import save_items
from bench.evaluation.tasks import load_tasks
from bench.models.device import resolved_device
from bench.records.mirror import Tracker
from bench.records.record import (
    CorpusInfo,
    Record,
    TargetInfo,
    Timing,
    read_record,
    write_record,
)
from bench.running.announced import announced
from bench.running.calibrator import Calibrator
from bench.running.identity import own_key, shared_key
from bench.running.planned import Compression, Planned
from bench.running.recipe import Recipe
from bench.running.record_parts import similarity_info
from bench.running.recorded import record_of, told
from bench.running.stages import (
    chat_of,
    count_cold,
    evaluate_checkpoint,
    recover_checkpoint,
    time_checkpoint,
    timing_key,
    write_checkpoint,
)
from bench.running.stored_plans import stored_plan
from bench.running.subject import Subject
from bench.serving.engine import engine_named
from bench.settings.run_settings import RunConfig
from bench.store.atomic import write_atomically
from bench.store.store import Store, digest_of, write_json
from bench.timing.offline import TimingSession
from methods.framework.errors import MoebenchError, RecordError, RefusedError
from methods.framework.plan import Plan

Report = Callable[[Subject, str], None]
"""Called with a subject and the stage that it enters, or its status at the end.

Stages are ``calibrate``, ``plan``, ``apply``, ``recover``, ``evaluate`` and ``time``; while one runs ``calibrate DONE/LAYERS``,
``apply DONE/LAYERS``, ``recover DONE/STEPS loss LOSS`` and ``evaluate TASK DONE/REQUESTS``.
"""


FINAL = ("complete", "refused")
"""What ends a row for good; what failed is tried again."""


class Run:
    """One call of ``moebench run``."""

    def __init__(
        self, config: RunConfig, store: Store, tracker: Tracker, report: Report = lambda subject, stage: None
    ) -> None:
        """Check everything that can be checked before any work: methods, tasks, engines, model.

        Args:
            config: what the run does.
            store: keeps records and cached artefacts.
            tracker: gets the records, too.
            report: called with a subject and the stage that it enters, or its status at the end.

        Raises:
            MoebenchError: an unknown method, knob, task or engine, a model that cannot be read, a plan of another model.
        """
        self.config, self.store, self.tracker = config, store, tracker
        methods: list[Compression] = [one.configured() for one in config.methods]
        methods += [Recipe.configured(one) for one in config.recipes]
        recoveries = [config.recovery] * len(config.methods)
        recoveries += [one.recovery or config.recovery for one in config.recipes]
        if config.evaluation.tasks:
            check_tasks(config.evaluation.tasks, config.evaluation.include_path)
        for name in filter(None, (config.target, config.timing.engine)):
            engine_named(name)
        trained_on = [one.device for one in recoveries if one is not None]
        for name in (config.calibration.device, config.evaluation.device, *trained_on):
            resolved_device(name)  # also where every record is there already: who asks for one expects it to be used
        self.checkpoint = Checkpoint.open(config.model, config.revision, config.trust_remote_code)
        self.report = announced(report, tracker, config, self.checkpoint)
        methods += [Planned.read(path, self.checkpoint.inventory) for path in config.plans]
        recoveries += [config.recovery] * len(config.plans)
        self.base = Subject(None)
        pairs = zip(methods, recoveries, strict=True)
        self.subjects = [self.base, *(Subject(method, recovery) for method, recovery in pairs)]
        needs = frozenset().union(*(m.of_source if isinstance(m, Recipe) else m.measured for m in methods))
        self.calibrator = Calibrator(self.checkpoint, config.calibration, store, needs)

    def execute(self) -> list[Record]:
        """Run every subject that has no record yet and return all records, the base's first.

        Raises:
            MoebenchError: a corpus cannot be read, or the base not be evaluated.
        """
        self._identify()
        todo = [subject for subject in self.subjects if subject.record is None]
        earlier = [subject for subject in self.subjects if subject.record is not None]
        for subject in earlier:
            assert subject.record is not None
            self.report(subject, f"{subject.record.status} (earlier)")
        if todo:
            for subject in todo:
                self._guarded(subject, self._check)
            self._evaluate(self.base)
            for subject in todo:
                for stage in (self._decide, self._recover, self._evaluate):
                    self._guarded(subject, stage)
                if not self.config.timing.enabled or subject.status != "complete":
                    self._record(subject)
            self._time([subject for subject in todo if subject.record is None])
        for subject in earlier:
            self._mirror(subject)
        return [subject.record for subject in self.subjects if subject.record is not None]

    def _identify(self) -> None:
        """Give each subject the id that everything which determines its result hashes to, and find earlier records."""
        asked = self.config.evaluation
        tasks: dict[str, str] = {}
        if asked.tasks:
            shots, limit, seed = asked.num_fewshot, asked.limit, asked.seed
            chat = chat_of(asked, lambda: open_tokenizer(self.checkpoint.path, self.checkpoint.trust_remote_code))
            generation = generation_of(asked, self.checkpoint.path)
            leaves, _ = load_tasks(
                asked.tasks,
                asked.include_path,
                num_fewshot=shots,
                limit=limit,
                seed=seed,
                chat=chat,
                generation=generation,
            )
            tasks = {name: leaf.digest for name, leaf in leaves.items()}
        shared = shared_key(self.config, self.checkpoint.content, tasks)
        for subject in self.subjects:
            self._find_corpus(subject)
            key = digest_of(shared | own_key(self.config, subject.method, subject.recovery, subject.corpus))[:16]
            subject.id = key
            while (path := self.store.records / f"{subject.id}.json").exists():
                earlier = read_record(path)
                if earlier.status in FINAL:
                    subject.record = earlier
                    subject.plan = stored_plan(earlier, self.store)
                    break
                subject.attempt += 1
                subject.id = f"{key}-{subject.attempt}"

    def _find_corpus(self, subject: Subject) -> None:
        if subject.method is None:
            return
        corpus = self.calibrator.corpus_for(subject.method)
        if corpus is not None:
            subject.corpus = CorpusInfo(
                name=corpus.name,
                digest=corpus.digest,
                tokens=corpus.tokens,
                counted=None if corpus.marks is None else corpus.counted,
                sequences=len(corpus.windows),
                propagation=self.config.calibration.propagation,
                opening=corpus.opening,
                sources=dict(corpus.sources),
                system_instruction=corpus.talk.system,
                enable_thinking=corpus.talk.thinking,
                template_arguments=dict(corpus.talk.arguments),
            )

    def _guarded(self, subject: Subject, stage: Callable[[Subject], None]) -> None:
        """Run one stage of one subject; its failure ends this subject and no other."""
        if subject.status != "complete":
            return
        try:
            stage(subject)
        except RefusedError as refusal:
            subject.status, subject.reason = "refused", str(refusal)
        except MoebenchError as failure:
            subject.status, subject.reason = "failed", str(failure)
        except Exception as failure:  # any code of any method may run here; the others must not suffer
            log = self.store.root / "logs" / f"{subject.id}.log"
            write_atomically(log, traceback.format_exc())
            subject.status, subject.reason = "failed", f"{told(failure)}; where it came from: logs/{log.name}"
        if subject.status != "complete":
            self.report(subject, subject.status)

    def _check(self, subject: Subject) -> None:
        """Refuse what shapes and settings alone rule out, before any model runs."""
        method, inventory = subject.method, self.checkpoint.inventory
        if method is None:
            return
        if isinstance(method, Planned):
            if subject.corpus is not None and subject.corpus.propagation != "one_shot":
                raise RefusedError("a plan file is decided already, and its values come from one pass; use one_shot")
        else:
            first = method.steps[0].method if isinstance(method, Recipe) else method
            if reason := first.refuse(inventory):
                raise RefusedError(f"{first.name}: {reason}")
        self.calibrator.check(method, method.of_source if isinstance(method, Recipe) else method.measured)
        self._check_target(subject, method.decided if isinstance(method, Planned) else Plan.identity(inventory))
        if subject.recovery is not None:
            from bench.recovery.text import training_text

            training_text(subject.recovery, self.checkpoint)

    def _decide(self, subject: Subject) -> None:
        """Calibrate, plan and write the checkpoint; the base is the source itself."""
        if subject.method is None:
            return
        self.report(subject, "calibrate")
        with subject.clock.stage("calibrate"):
            stats = self.calibrator.stats_for(subject.method, self._counted(subject, "calibrate"))
        self.report(subject, "plan")
        with subject.clock.stage("plan"):
            if isinstance(subject.method, Recipe):
                subject.plan, stats = subject.method.decide(self.calibrator, self.checkpoint, self.store)
            elif isinstance(subject.method, Planned):
                subject.plan = subject.method.decided
            else:
                probe = self.calibrator.probe_for(subject.method)
                subject.plan = subject.method.plan(self.checkpoint.inventory, stats, probe)
                if self.config.calibration.propagation == "one_shot":
                    subject.similarity = similarity_info(stats, self.checkpoint.inventory, subject.method.measured)
        self._check_target(subject, subject.plan)
        provenance = subject.provenance
        write_json(
            self.store.plans / f"{subject.plan.digest}.json",
            {**subject.plan.document(), "provenance": {**provenance, "model": self.checkpoint.name}},
        )
        self.report(subject, "apply")
        with subject.clock.stage("apply"):
            moments = self.calibrator.moments_for(subject.plan, subject.method, stats, self._counted(subject, "apply"))
            subject.path = write_checkpoint(
                self.checkpoint, subject.plan, self.store, provenance, moments, self.calibrator.device
            )
            # Writing it, or finding it again, has just compared its files with this digest.
            subject.content = stated_digest(subject.path) or Checkpoint.open(subject.path).content
        subject.cold = count_cold(subject.plan, self.checkpoint, moments, self.store)

    def _counted(self, subject: Subject, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self.report(subject, f"{stage} {done}/{total}")

    def _check_target(self, subject: Subject, plan: Plan) -> None:
        """Note what is known about the engine that is to run ``plan``.

        Raises:
            RefusedError: it cannot.
        """
        name = self.config.target
        if name is None:
            return
        found = engine_named(name).verdict(plan, self.checkpoint.inventory)
        subject.target = TargetInfo(name=name, outcome=found.outcome, reason=found.reason, notes=found.notes)
        if found.outcome == "refused":
            raise RefusedError(f"{name} cannot run this plan: {found.reason}")

    def _recover(self, subject: Subject) -> None:
        """Train the subject's checkpoint, where that is asked for."""
        if subject.recovery is None:
            return
        assert subject.path is not None
        self.report(subject, "recover")
        with subject.clock.stage("recover"):
            subject.recovered = recover_checkpoint(
                subject.path,
                subject.recovery,
                self.checkpoint.path,
                self.store,
                lambda done, total, loss: self.report(subject, f"recover {done}/{total} loss {loss:.3f}"),
                self.checkpoint.trust_remote_code,
            )
            subject.path = subject.recovered.path
            subject.content = Checkpoint.open(subject.path).content

    def _evaluate(self, subject: Subject) -> None:
        """Score the subject's checkpoint."""
        if subject.evaluation is not None or not self.config.evaluation.tasks:
            return
        if subject.method is None:
            subject.path, subject.content = self.checkpoint.path, self.checkpoint.content
        assert subject.path is not None
        self.report(subject, "evaluate")
        with subject.clock.stage("evaluate"):
            subject.evaluation = evaluate_checkpoint(
                subject.path,
                subject.content,
                self.config.evaluation,
                self.store,
                lambda task, done, total: self.report(subject, f"evaluate {task} {done}/{total}"),
                self.checkpoint.trust_remote_code,
            )

    def _time(self, todo: Sequence[Subject]) -> None:
        """Time all compressed models against the base, which gets the timing of its first pair, and record each."""
        timing, base = self.config.timing, self.base
        if not timing.enabled or not todo:
            return
        base.path, base.content = self.checkpoint.path, self.checkpoint.content
        with TimingSession(timing, logs=self.store.root / "logs") as session:
            cannot = {id(one): one.path and session.engine.refuses(one.path) for one in todo if one is not base}
            for subject in todo:
                if subject is base or cannot[id(subject)]:
                    continue
                self._guarded(subject, lambda one: self._time_pair(session, one))
                if base in todo and base.record is None and base.timing is not None:
                    self._record(base)
                self._record(subject)
            if base in todo and base.record is None:
                self._guarded(base, lambda one: self._time_alone(session, one))
                self._record(base)
        for subject in todo:
            if subject.record is None:
                subject.timing = Timing(reason=cannot[id(subject)])
                self._record(subject)

    def _time_pair(self, session: TimingSession, subject: Subject) -> None:
        base = self.base
        assert base.path is not None and subject.path is not None
        self.report(subject, "time")
        key = timing_key(base.content, subject.content, self.config.timing, session.engine.distributions)
        with subject.clock.stage("time"):
            first, subject.timing = time_checkpoint(session, base.path, subject.path, key, self.store)
        base.timing = base.timing or first

    def _time_alone(self, session: TimingSession, base: Subject) -> None:
        assert base.path is not None
        self.report(base, "time")
        base.timing = session.alone(base.path)

    def _record(self, subject: Subject) -> None:
        """Write the record of ``subject`` with its items beside it, write its card, and mirror it."""
        record = record_of(subject, self.base, self.config, self.checkpoint)
        subject.record = self._settled(subject, record)
        if subject.method is not None and subject.path is not None:
            write_card(subject.path, subject.record, self.config.evaluation)
        self.report(subject, subject.record.status)
        self._mirror(subject)

    def _mirror(self, subject: Subject) -> None:
        assert subject.record is not None
        self.tracker.track(subject.record, subject.plan.dumps() if subject.plan else None, self.base.record)

    def _settled(self, subject: Subject, record: Record) -> Record:
        """Write ``record`` with its items beside it; where an equal run was faster, return what that wrote."""
        while True:
            if record.scores and subject.evaluation is not None:
                save_items(subject.evaluation.items.values(), self.store.items(record.id))
            try:
                write_record(record, self.store.records)
            except RecordError:
                path = self.store.records / f"{record.id}.json"
                if not path.is_file():
                    raise
                earlier = read_record(path)
                if earlier.status in FINAL or record.status not in FINAL:
                    return earlier
                subject.attempt += 1
                subject.id = f"{record.id.partition('-')[0]}-{subject.attempt}"
                record = record.model_copy(update={"id": subject.id})
            else:
                return record
