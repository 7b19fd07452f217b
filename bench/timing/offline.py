"""Speed and memory of checkpoints under vLLM, the base and a compressed model in alternation.

Each model has a process of its own. One repeat is, for each batch size, one batch on the base followed by the same batch
on the compressed model, so that whatever slows the machine for a while meets both; ratios are taken pair by pair.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from bench.checkpoint.config_file import read_config
from bench.records.record import BatchTiming, Interval, Mark, Timing
from bench.serving.processes.client import Zygote
from bench.serving.processes.hardware import choose_cores
from bench.serving.servable import dequantised, served_realisation, unservable
from bench.serving.serve import REMEDY
from bench.timing.intervals import drift, median_interval, spread
from bench.timing.protocol import DEQUANTISED, TimingProtocol, weights_bytes
from methods.framework.errors import ConfigError, TimingError

__all__ = ["TimingProtocol", "TimingSession", "time_pair"]

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


class _Subject:
    """One model under measurement: its worker, its repeats, and the reason that ended it."""

    def __init__(self, path: Path, timed: bool = True) -> None:
        self.path, self.reason = path, unservable(path)
        self.realisation: str | None = None
        if timed:
            import torch

            cpu = not torch.cuda.is_available()
            self.realisation = served_realisation(path, cpu)
            self.reason = self.reason or (DEQUANTISED if dequantised(path, cpu) else None)
        self.worker: ServingWorker | None = None
        self.repeats: dict[int, dict[int, dict[str, float]]] = {}  # by batch size and number
        self.facts: dict[str, Any] = {}
        self.peak = 0

    def forget(self) -> None:
        """Drop all numbers, and keep process, failure and facts."""
        self.repeats = {}

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None


class TimingSession:
    """Times many models against one base; vLLM is imported once, and the base's process is kept between calls."""

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
            open_worker: starts a worker process of that name; None for vLLM.
        """
        self._protocol = protocol if protocol is not None else TimingProtocol()
        self._logs, self._open = logs, open_worker
        self._zygote: Zygote | None = None
        self._missing = None if open_worker or importlib.util.find_spec("vllm") else f"vLLM is not installed; {REMEDY}"
        self._base: _Subject | None = None

    def __enter__(self) -> Self:
        """Start importing vLLM in the background."""
        threads = self._protocol.threads
        if self._open is None and self._missing is None:
            self._zygote = Zygote(self._logs, threads=threads, cores=choose_cores(threads) if threads else ())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all processes."""
        if self._base is not None:
            self._base.close()
        if self._zygote is not None:
            self._zygote.close()

    def time(self, base: Path, compressed: Path) -> tuple[Timing, Timing]:
        """Time one pair.

        Prefill speed is ``batch * prompt`` tokens over the seconds from the first engine step until every prompt has
        its first token. Decode speed is ``batch * generate`` tokens over the rest. ``rounds`` such batches are summed
        into one repeat. Prompts are new in each repeat and the same for both models. While the interval of a ratio is
        wider than ``noise`` times its median, up to ``extra`` further pairs of that batch size are measured; the width
        decides, never the ratio itself.

        A batch size of the compressed model is marked ``noisy`` when the interval of a ratio is wider than ``noise``
        times its median, ``drifting`` when the base's seconds changed by more than ``drift`` from the first pair to the
        last, and ``uneven`` when the processes differ by more than 15 % in CPU seconds per wall second.

        Args:
            base: checkpoint folder of the original.
            compressed: checkpoint folder of the compressed model.

        Returns:
            Timing of the base (without ratios) and of the compressed model (with ratios); where one cannot be served,
            its timing holds the reason and no number.

        Raises:
            CheckpointError: a folder has no config.
            ConfigError: prompt and generated tokens do not fit the model's positions.
        """
        first, second = self._subject(base), _Subject(compressed)
        if self._missing:
            return Timing(reason=self._missing), Timing(reason=self._missing)
        self._check_lengths(base)
        try:
            for repeat in range(self._protocol.repeats + self._protocol.extra):
                wanted = self._wanted(first, second, repeat)
                if not wanted:
                    break
                self._pair(first, second, repeat, wanted)
            for subject in (first, second):
                self._finish(subject)
        finally:
            second.close()
        return self._timing(first, None), self._timing(second, first)

    def alone(self, base: Path) -> Timing:
        """Time the base by itself, without ratios; see ``time``."""
        first = self._subject(base)
        if self._missing:
            return Timing(reason=self._missing)
        self._check_lengths(base)
        for repeat in range(self._protocol.repeats):
            self._repeat(first, repeat, self._protocol.batches)
        self._finish(first)
        return self._timing(first, None)

    def greedy(self, path: Path, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """Return ``tokens`` greedy tokens after each prompt, as vLLM gives them.

        Raises:
            TimingError: vLLM is missing, or cannot serve the checkpoint.
        """
        return self.answers(path, prompts, tokens)[0]

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
        subject = _Subject(path, timed=False)
        if reason := self._missing or subject.reason:
            raise TimingError(f"{path} cannot be served: {reason}")
        try:
            self._start(subject, max(map(len, prompts)) + tokens)
            assert subject.worker is not None
            sent, limit = [list(prompt) for prompt in prompts], self._protocol.run_seconds
            generated: list[list[int]] = subject.worker.ask("greedy", limit, prompts=sent, tokens=tokens)
            read: list[list[float]] = subject.worker.ask("log_probabilities", limit, prompts=sent)
            return generated, read
        finally:
            subject.close()

    def _subject(self, base: Path) -> _Subject:
        """Return the base, with its living process or its failure where it is that of the last call, and no repeats."""
        if self._base is None or self._base.path != base:
            if self._base is not None:
                self._base.close()
            self._base = _Subject(base)
        self._base.forget()
        return self._base

    def _check_lengths(self, base: Path) -> None:
        length = self._protocol.prompt + self._protocol.generate + 1
        limit = read_config(base).get("max_position_embeddings")
        if limit is not None and length > limit:
            raise ConfigError(f"prompt + generate + 1 = {length} tokens, but {base} has {limit} positions; lower them")

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
            "kv_cache_memory_bytes": plan.kv_cache_bytes,
        }
        facts = subject.worker.ask("load", plan.start_seconds, path=str(subject.path.resolve()), options=options)
        subject.facts = facts
        if block := facts.get("kv_block_tokens"):
            # A batch that does not fit is not refused by the engine: sequences wait for one another, unseen.
            needed, room = largest * -(-length // block), facts["kv_blocks"]
            if needed > room:
                raise TimingError(
                    f"the key-value cache holds {room * block} tokens, but {largest} sequences of {length} need "
                    f"{needed * block}; raise kv_cache_bytes (now {plan.kv_cache_bytes}) or lower batch"
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
        return [batch for batch in plan.batches if self._noisy(self._ratios(base, subject, batch))]

    def _ratios(self, base: _Subject, subject: _Subject, batch: int) -> dict[str, Interval]:
        ratios = {}
        for phase in ("prefill", "decode"):
            pairs = [base.repeats[batch][repeat][phase] / one[phase] for repeat, one in subject.repeats[batch].items()]
            ratios[f"{phase}_ratio"] = median_interval(pairs)
        return ratios

    def _noisy(self, ratios: dict[str, Interval]) -> bool:
        return max(map(spread, ratios.values())) > self._protocol.noise

    def _batch_timing(self, subject: _Subject, base: _Subject | None, batch: int) -> BatchTiming:
        plan, repeats = self._protocol, subject.repeats[batch]
        tokens = {"prefill": plan.rounds * batch * plan.prompt, "decode": plan.rounds * batch * plan.generate}
        speeds = {phase: median_interval([tokens[phase] / one[phase] for one in repeats.values()]) for phase in tokens}
        seconds = {key: tuple(one[key] for one in repeats.values()) for key in next(iter(repeats.values()))}
        if base is None:
            return BatchTiming(batch=batch, seconds=seconds, **speeds)
        ratios = self._ratios(base, subject, batch)
        pairs = list(base.repeats[batch].values())
        change = drift([one["at"] for one in pairs], [one["prefill"] + one["decode"] for one in pairs])
        shares = (_share(base.repeats[batch]), _share(repeats))
        marks: dict[Mark, bool] = {
            "noisy": self._noisy(ratios),
            "drifting": abs(change) > plan.drift,
            "uneven": abs(shares[0] - shares[1]) > _UNEVEN * max(shares),
        }
        return BatchTiming(
            batch=batch,
            drift=change,
            cpu_share=shares,
            marks=tuple(mark for mark, found in marks.items() if found),
            seconds=seconds,
            **speeds,
            **ratios,
        )

    def _timing(self, subject: _Subject, base: _Subject | None) -> Timing:
        # An original is neither; a base that is itself compressed only says where it is not run so.
        realisation = subject.realisation if base is not None or subject.realisation == "dense" else None
        if subject.reason:
            return Timing(reason=subject.reason, realisation=realisation)
        if base is not None and base.reason:
            return Timing(reason=f"the base could not be timed: {base.reason}", realisation=realisation)
        batches = tuple(self._batch_timing(subject, base, batch) for batch in self._protocol.batches)
        head, facts = batches[0], subject.facts
        kv_tokens = facts["kv_blocks"] * facts["kv_block_tokens"] if facts.get("kv_block_tokens") else None
        return Timing(
            prefill=head.prefill,
            decode=head.decode,
            prefill_ratio=head.prefill_ratio,
            decode_ratio=head.decode_ratio,
            marks=head.marks,
            weights_bytes=weights_bytes(subject.path),
            peak_bytes=subject.peak,
            parameter_bytes=facts.get("parameter_bytes"),
            kv_tokens=kv_tokens,
            batches=batches,
            realisation=realisation,
            protocol={**asdict(self._protocol), **facts},
        )


def time_pair(
    base: Path, compressed: Path, *, logs: Path, protocol: TimingProtocol | None = None
) -> tuple[Timing, Timing]:
    """Time one compressed model against its base in a session of their own; see ``TimingSession.time``."""
    with TimingSession(protocol, logs=logs) as session:
        return session.time(base, compressed)
