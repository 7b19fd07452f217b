"""Speed and memory of checkpoints under vLLM, the base and a compressed model in alternation.

Each model has a process of its own. One repeat is, for each batch size, one batch on the base followed by the same batch
on the compressed model, so that whatever slows the machine for a while meets both; ratios are taken pair by pair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from bench.checkpoint.config_file import read_config
from bench.records.record import BatchTiming, Interval, Timing
from bench.serving.engine import Engine
from bench.serving.processes.client import Zygote
from bench.serving.processes.hardware import choose_cores
from bench.settings.timing_settings import TimingProtocol
from bench.timing.intervals import correlation, drift, median_interval
from bench.timing.session import PairSession, Subject
from methods.framework.errors import TimingError

# Two threads on a busy machine can spin against each other for the whole life of one process, which doubles its time in
# every repeat alike; CPU seconds per wall second then differ between the two processes.
_UNEVEN = 0.15


class ServingWorker(Protocol):
    """What the session needs of a worker process."""

    def ask(self, verb: str, timeout: float, **arguments: Any) -> Any:
        """Send one request and return its answer, or raise ``TimingError``."""
        ...

    def close(self) -> None:
        """End the process."""
        ...


def _share(repeats: dict[int, dict[str, float]]) -> float:
    """Return the CPU seconds of a process for each second of its measurements."""
    wall = sum(one["prefill"] + one["decode"] for one in repeats.values())
    return sum(one["prefill_cpu"] + one["decode_cpu"] for one in repeats.values()) / wall


class _Subject(Subject):
    """One model under measurement: its worker, its repeats by batch size and number, and what it told about itself."""

    def __init__(self, path: Path, runner: Engine) -> None:
        super().__init__(path, runner)
        self.worker: ServingWorker | None = None
        self.repeats: dict[int, dict[int, dict[str, float]]] = {}
        self.facts: dict[str, Any] = {}
        self.peak = 0

    def forget(self) -> None:
        self.repeats = {}

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None


class TimingSession(PairSession[_Subject, TimingProtocol]):
    """Times many models against one base; the engine is imported once.

    Prefill speed is ``batch * prompt`` tokens over the seconds from the first engine step until every prompt has
    its first token. Decode speed is ``batch * generate`` tokens over the rest. ``rounds`` such batches are summed
    into one repeat. Prompts are new in each repeat and the same for both models. While the interval of a ratio is
    wider than ``noise`` times its median, up to ``extra`` further pairs of that batch size are measured; the width
    decides, never the ratio itself.

    A batch size of the compressed model is marked ``noisy`` when the interval of a ratio is wider than ``noise``
    times its median, ``drifting`` when the base's seconds changed by more than ``drift`` from the first pair to the
    last, and ``uneven`` when the processes differ by more than 15 % in CPU seconds per wall second.
    """

    def __init__(
        self,
        protocol: TimingProtocol | None = None,
        *,
        logs: Path,
        open_worker: Callable[[str], ServingWorker] | None = None,
    ) -> None:
        """Prepare a session.

        Args:
            protocol: what each timing does, None for the defaults.
            logs: folder for the full logs of the serving processes.
            open_worker: starts a worker process of that name; None for the engine's own.

        Raises:
            UnknownNameError: the protocol names an engine that there is not.
        """
        super().__init__(protocol if protocol is not None else TimingProtocol(), logs, open_worker is not None)
        self._open = open_worker
        self._zygote: Zygote | None = None
        if open_worker is None and self.engine.worker is None:
            self._missing = self._missing or f"{self.engine.name} cannot be timed: {self.engine.cannot}"

    def __enter__(self) -> Self:
        """Start importing the engine in the background."""
        threads, module = self._protocol.threads, self.engine.worker
        if self._open is None and self._missing is None and module is not None:
            self._zygote = Zygote(self._logs, module, threads, choose_cores(threads) if threads else ())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all processes."""
        super().__exit__(kind, error, trace)
        if self._zygote is not None:
            self._zygote.close()

    def alone(self, base: Path) -> Timing:
        """Time the base by itself, without ratios; see ``time``."""
        first = self._subject_of_base(base)
        if self._missing:
            return Timing(reason=self._missing)
        self._check_lengths(base)
        for repeat in range(self._protocol.repeats):
            self._repeat(first, repeat, self._protocol.batches)
        self._finish(first)
        return self._timing(first, None)

    def greedy(self, path: Path, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """Return ``tokens`` greedy tokens after each prompt, as vLLM gives them.

        Args:
            path: checkpoint folder, as for ``answers``.
            prompts: token ids.
            tokens: to generate.

        Raises:
            TimingError: vLLM is missing, or cannot serve the checkpoint.
        """
        generated: list[list[int]] = self._asked(path, prompts, tokens, ("greedy",))[0]
        return generated

    def answers(
        self, path: Path, prompts: Sequence[Sequence[int]], tokens: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Return ``tokens`` greedy tokens after each prompt, and the log-probability of each token of it but the first.

        Args:
            path: checkpoint folder; one that is only served with de-quantised values answers too.
            prompts: token ids.
            tokens: to generate.

        Returns:
            Tokens and log-probabilities (nats), as vLLM gives them in a process of its own.

        Raises:
            TimingError: vLLM is missing, or cannot serve the checkpoint.
        """
        generated, read = self._asked(path, prompts, tokens, ("greedy", "log_probabilities"))
        return generated, read

    def _asked(
        self, path: Path, prompts: Sequence[Sequence[int]], tokens: int, verbs: Sequence[str]
    ) -> tuple[Any, ...]:
        """Return what a worker of its own answers to each of ``verbs`` about the checkpoint in ``path``."""
        if reason := self._missing or self.engine.refuses(path):
            raise TimingError(f"{path} cannot be served: {reason}")
        subject, sent = self._subject(path), [list(prompt) for prompt in prompts]
        further: dict[str, dict[str, Any]] = {"greedy": {"tokens": tokens}, "log_probabilities": {}}
        try:
            self._start(subject, max(map(len, prompts)) + tokens)
            assert subject.worker is not None
            limit = self._protocol.run_seconds
            return tuple(subject.worker.ask(verb, limit, prompts=sent, **further[verb]) for verb in verbs)
        finally:
            subject.close()

    def _subject(self, path: Path) -> _Subject:
        return _Subject(path, self.engine)

    def _check_lengths(self, base: Path, spare: int = 1) -> None:
        super()._check_lengths(base, spare)  # what is generated comes after a first token, which belongs to prefill

    def _alternate(self, first: _Subject, second: _Subject) -> None:
        for repeat in range(self._protocol.repeats + self._protocol.extra):
            wanted = self._wanted(first, second, repeat)
            if not wanted:
                break
            self._pair(first, second, repeat, wanted)
        for subject in (first, second):
            self._finish(subject)

    def _start(self, subject: _Subject, length: int) -> None:
        plan = self._protocol
        if self._open is not None:
            subject.worker = self._open(subject.path.name)
        else:
            assert self._zygote is not None, "TimingSession is a context manager: use it in a with statement"
            subject.worker = self._zygote.worker(subject.path.name, plan.start_seconds)
        largest = max(plan.batches)
        options = {
            "dtype": plan.dtype,
            "seed": plan.seed,
            "max_model_len": length,
            "max_num_seqs": largest,
            # The whole batch of prompts fits one engine step, so that prefill and decode do not mix.
            "max_num_batched_tokens": max(largest * plan.prompt, length),
            "kv_cache_memory_bytes": plan.cache_bytes,
        }
        facts = subject.worker.ask("load", plan.start_seconds, path=str(subject.path.resolve()), options=options)
        subject.facts = facts
        if block := facts.get("kv_block_tokens"):
            # A batch that does not fit is not refused by the engine: sequences wait for one another, unseen.
            needed, room = largest * -(-length // block), facts["kv_blocks"]
            if needed > room:
                raise TimingError(
                    f"the key-value cache holds {room * block} tokens, but {largest} sequences of {length} need "
                    f"{needed * block}; raise kv_cache_bytes (now {plan.cache_bytes}) or lower batch"
                )

    def _batch(self, subject: _Subject, batch: int, number: int) -> dict[str, float]:
        plan = self._protocol
        assert subject.worker is not None
        vocabulary = int(read_config(subject.path)["vocab_size"])
        draw = np.random.default_rng([plan.seed, number])
        prompts = draw.integers(vocabulary, size=(batch, plan.prompt)).tolist()
        answer: dict[str, float] = subject.worker.ask(
            "measure", plan.run_seconds, prompts=prompts, generate=plan.generate
        )
        return answer

    def _pair(self, first: _Subject, second: _Subject, repeat: int, batches: Sequence[int]) -> None:
        """Measure one repeat of both; with one process at a time, all batch sizes of the one before those of the other."""
        turns = [[batch] for batch in batches] if self._protocol.residency == "both" else [batches]
        for turn in turns:
            self._repeat(first, repeat, turn)
            if first.reason is None:
                self._repeat(second, repeat, turn)

    def _repeat(self, subject: _Subject, repeat: int, batches: Sequence[int]) -> None:
        """Measure one repeat at some batch sizes; a failure becomes the subject's reason."""
        if subject.reason:
            return
        plan = self._protocol
        try:
            if subject.worker is None:
                self._start(subject, plan.prompt + plan.generate + 1)
                for batch in plan.batches:
                    for number in range(plan.warmup):
                        self._batch(subject, batch, number)
            numbers = range(plan.warmup + repeat * plan.rounds, plan.warmup + (repeat + 1) * plan.rounds)
            for batch in batches:
                at = time.monotonic()
                rounds = [self._batch(subject, batch, number) for number in numbers]
                found = {key: sum(one[key] for one in rounds) for key in rounds[0]}
                subject.repeats.setdefault(batch, {})[repeat] = {**found, "at": at}
            if plan.residency == "one":
                self._finish(subject)
                subject.close()
        except TimingError as error:
            subject.reason = str(error)
            subject.close()

    def _finish(self, subject: _Subject) -> None:
        if subject.worker is None or subject.reason:
            return
        try:
            subject.peak = max(subject.peak, int(subject.worker.ask("peak", 60.0)))
            if subject.facts.get("gpu"):
                subject.facts["gpu_after"] = subject.worker.ask("gpu", 60.0)
        except TimingError as error:
            subject.reason = str(error)

    def _wanted(self, base: _Subject, subject: _Subject, done: int) -> Sequence[int]:
        """Return the batch sizes that need a further pair: all at first, then those whose ratios are still noisy."""
        plan = self._protocol
        if done < plan.repeats:
            return plan.batches
        if base.reason or subject.reason or plan.residency == "one":
            return ()
        return [batch for batch in plan.batches if self._noisy([*self._ratios(base, subject, batch).values()])]

    def _ratios(self, base: _Subject, subject: _Subject, batch: int) -> dict[str, Interval]:
        ratios = {}
        for phase in ("prefill", "decode"):
            pairs = self._paired(base, subject, batch, phase)
            ratios[f"{phase}_ratio"] = median_interval(pairs, stopped=self._protocol.extra > 0)
        return ratios

    def _paired(self, base: _Subject, subject: _Subject, batch: int, phase: str) -> list[float]:
        """Return the base's seconds over the subject's, pair by pair."""
        return [base.repeats[batch][repeat][phase] / one[phase] for repeat, one in subject.repeats[batch].items()]

    def _batch_timing(self, subject: _Subject, base: _Subject | None, batch: int) -> BatchTiming:
        plan, repeats = self._protocol, subject.repeats[batch]
        tokens = {"prefill": plan.rounds * batch * plan.prompt, "decode": plan.rounds * batch * plan.generate}
        speeds = {
            phase: median_interval([tokens[phase] / one[phase] for one in repeats.values()], stopped=plan.extra > 0)
            for phase in tokens
        }
        seconds = {key: tuple(one[key] for one in repeats.values()) for key in next(iter(repeats.values()))}
        if base is None:
            return BatchTiming(batch=batch, seconds=seconds, **speeds)
        ratios = self._ratios(base, subject, batch)
        pairs = list(base.repeats[batch].values())
        change = drift([one["at"] for one in pairs], [one["prefill"] + one["decode"] for one in pairs])
        shares = (_share(base.repeats[batch]), _share(repeats))
        uneven = abs(shares[0] - shares[1]) > _UNEVEN * max(shares)
        alike = max(correlation(self._paired(base, subject, batch, phase)) for phase in ("prefill", "decode"))
        return BatchTiming(
            batch=batch,
            drift=change,
            cpu_share=shares,
            marks=self._marks([*ratios.values()], change, alike, uneven),
            seconds=seconds,
            **speeds,
            **ratios,
        )

    def _numbers(self, subject: _Subject, base: _Subject | None) -> dict[str, Any]:
        batches = tuple(self._batch_timing(subject, base, batch) for batch in self._protocol.batches)
        head, facts = batches[0], subject.facts
        return {
            "prefill": head.prefill,
            "decode": head.decode,
            "prefill_ratio": head.prefill_ratio,
            "decode_ratio": head.decode_ratio,
            "marks": head.marks,
            "peak_bytes": subject.peak,
            "parameter_bytes": facts.get("parameter_bytes"),
            "kv_tokens": facts["kv_blocks"] * facts["kv_block_tokens"] if facts.get("kv_block_tokens") else None,
            "batches": batches,
            "protocol": {**self._protocol.stored(), **facts},
        }
