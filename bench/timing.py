"""Speed and memory of checkpoints under vLLM, the base and a compressed model in alternation.

Each model has a process of its own. One repeat is one batch on the base followed by the same batch on the compressed
model, so that whatever slows the machine for a while meets both; ratios are taken pair by pair.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from bench.record import Interval, Timing
from bench.serving.client import Zygote
from bench.serving.protocol import TimingProtocol, read_config, unservable, weights_bytes
from bench.serving.statistics import median_interval
from methods.errors import ConfigError, TimingError

__all__ = ["TimingProtocol", "TimingSession", "time_pair"]

REMEDY = "install moebench with the extra 'gpu', or 'cpu' on a machine without GPU"
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


def _share(subject: _Subject) -> float:
    """Return the CPU seconds of a process for each second of its measurements."""
    wall = sum(one["prefill"] + one["decode"] for one in subject.repeats.values())
    return sum(one["prefill_cpu"] + one["decode_cpu"] for one in subject.repeats.values()) / wall


def _spread(ratios: dict[str, Interval]) -> dict[str, float]:
    """Return the width of each interval as a share of its median."""
    return {name: (ratio.high - ratio.low) / ratio.median for name, ratio in ratios.items()}


class _Subject:
    """One model under measurement: its worker, its repeats, and the reason that ended it."""

    def __init__(self, path: Path) -> None:
        self.path, self.reason = path, unservable(path)
        self.worker: ServingWorker | None = None
        self.repeats: dict[int, dict[str, float]] = {}
        self.facts: dict[str, Any] = {}
        self.peak = 0

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
        if self._open is None and self._missing is None:
            self._zygote = Zygote(self._logs, threads=self._protocol.threads)
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
        wider than ``noise`` times its median, up to ``extra`` further pairs are measured; the width decides, never the
        ratio itself.

        The protocol stored with the compressed model says ``noisy`` when the interval of a ratio is wider than
        ``noise`` times its median, or when the processes differ by more than 15 % in CPU seconds per wall second.

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
            repeat = 0
            while repeat < self._protocol.repeats or self._wants_more(first, second, repeat):
                self._repeat(first, repeat)
                if first.reason is None:
                    self._repeat(second, repeat)
                repeat += 1
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
            self._repeat(first, repeat)
        self._finish(first)
        return self._timing(first, None)

    def greedy(self, path: Path, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """Return ``tokens`` greedy tokens after each prompt, as vLLM gives them.

        Raises:
            TimingError: vLLM is missing, or cannot serve the checkpoint.
        """
        answer: list[list[int]] = self._answer(path, "greedy", prompts, tokens, tokens=tokens)
        return answer

    def log_probabilities(self, path: Path, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log-probability (nats) that vLLM gives to every token of each prompt but its first.

        Raises:
            TimingError: vLLM is missing, or cannot serve the checkpoint.
        """
        answer: list[list[float]] = self._answer(path, "log_probabilities", prompts, 1)
        return answer

    def _answer(self, path: Path, verb: str, prompts: Sequence[Sequence[int]], room: int, **arguments: Any) -> Any:
        """Ask a fresh process for the model in ``path``; ``room`` is how many tokens may follow a prompt."""
        subject = _Subject(path)
        if reason := self._missing or subject.reason:
            raise TimingError(f"{path} cannot be served: {reason}")
        try:
            self._start(subject, max(map(len, prompts)) + room)
            assert subject.worker is not None
            sent = [list(prompt) for prompt in prompts]
            return subject.worker.ask(verb, self._protocol.run_seconds, prompts=sent, **arguments)
        finally:
            subject.close()

    def _subject(self, base: Path) -> _Subject:
        """Return the base, with its living process or its failure where it is that of the last call, and no repeats."""
        if self._base is None or self._base.path != base:
            if self._base is not None:
                self._base.close()
            self._base = _Subject(base)
        self._base.repeats = {}
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
        options = {
            "dtype": plan.dtype,
            "seed": plan.seed,
            "max_model_len": length,
            "max_num_seqs": plan.batch,
            # The whole batch of prompts fits one engine step, so that prefill and decode do not mix.
            "max_num_batched_tokens": max(plan.batch * plan.prompt, length),
            "kv_cache_memory_bytes": plan.kv_cache_bytes,
        }
        facts = subject.worker.ask("load", plan.start_seconds, path=str(subject.path.resolve()), options=options)
        subject.facts = facts

    def _batch(self, subject: _Subject, number: int) -> dict[str, float]:
        plan = self._protocol
        assert subject.worker is not None
        vocabulary = int(read_config(subject.path)["vocab_size"])
        draw = np.random.default_rng([plan.seed, number])
        prompts = draw.integers(vocabulary, size=(plan.batch, plan.prompt)).tolist()
        answer: dict[str, float] = subject.worker.ask(
            "measure", plan.run_seconds, prompts=prompts, generate=plan.generate
        )
        return answer

    def _repeat(self, subject: _Subject, repeat: int) -> None:
        """Measure one repeat; a failure becomes the subject's reason."""
        if subject.reason:
            return
        plan = self._protocol
        try:
            if subject.worker is None:
                self._start(subject, plan.prompt + plan.generate + 1)
                for number in range(plan.warmup):
                    self._batch(subject, number)
            numbers = range(plan.warmup + repeat * plan.rounds, plan.warmup + (repeat + 1) * plan.rounds)
            rounds = [self._batch(subject, number) for number in numbers]
            subject.repeats[repeat] = {key: sum(one[key] for one in rounds) for key in rounds[0]}
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
        except TimingError as error:
            subject.reason = str(error)

    def _wants_more(self, base: _Subject, subject: _Subject, done: int) -> bool:
        """Return whether further pairs may still bring a noisy ratio within its bound."""
        plan = self._protocol
        if base.reason or subject.reason or plan.residency == "one" or done >= plan.repeats + plan.extra:
            return False
        return max(_spread(self._ratios(base, subject)).values()) > plan.noise

    def _ratios(self, base: _Subject, subject: _Subject) -> dict[str, Interval]:
        ratios = {}
        for phase in ("prefill", "decode"):
            pairs = [base.repeats[repeat][phase] / one[phase] for repeat, one in subject.repeats.items()]
            ratios[f"{phase}_ratio"] = median_interval(pairs, self._protocol.seed)
        return ratios

    def _timing(self, subject: _Subject, base: _Subject | None) -> Timing:
        if subject.reason:
            return Timing(reason=subject.reason)
        if base is not None and base.reason:
            return Timing(reason=f"the base could not be timed: {base.reason}")
        plan = self._protocol
        tokens = {"prefill": plan.rounds * plan.batch * plan.prompt, "decode": plan.rounds * plan.batch * plan.generate}
        own = {phase: [tokens[phase] / one[phase] for one in subject.repeats.values()] for phase in tokens}
        protocol: dict[str, Any] = {
            **asdict(plan),
            **subject.facts,
            "seconds": {key: [one[key] for one in subject.repeats.values()] for key in subject.repeats[0]},
        }
        ratios: dict[str, Any] = {}
        if base is not None:
            ratios = self._ratios(base, subject)
            spread = _spread(ratios)
            shares = [_share(base), _share(subject)]
            uneven = abs(shares[0] - shares[1]) > _UNEVEN * max(shares)
            protocol |= {"noisy": max(spread.values()) > plan.noise or uneven, "spread": spread, "cpu_share": shares}
        return Timing(
            prefill=median_interval(own["prefill"], plan.seed),
            decode=median_interval(own["decode"], plan.seed),
            weights_bytes=weights_bytes(subject.path),
            peak_bytes=subject.peak,
            protocol=protocol,
            **ratios,
        )


def time_pair(
    base: Path, compressed: Path, *, logs: Path, protocol: TimingProtocol | None = None
) -> tuple[Timing, Timing]:
    """Time one compressed model against its base in a session of their own; see ``TimingSession.time``."""
    with TimingSession(protocol, logs=logs) as session:
        return session.time(base, compressed)
