"""Checkpoints as servers, the base and a compressed model under load in alternation.

Both servers stay up where memory allows; while one is under load, the other one is stopped. One repeat is, for each request
rate, one run of requests against the base followed by the same requests against the compressed model.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from bench.records.record import OnlineTiming
from bench.serving.engine import Engine
from bench.serving.processes.client import Zygote
from bench.serving.processes.hardware import allowed_cores, choose_cores
from bench.settings.timing_settings import OnlineProtocol
from bench.timing.intervals import correlation, drift, median_interval
from bench.timing.servers import COMMAND, METRICS, Load, Server, without_tokenizer
from bench.timing.session import PairSession, Subject
from methods.framework.errors import TimingError


class ServedModel(Protocol):
    """What the session needs of a server."""

    path: Path

    def wait(self, seconds: float) -> None:
        """Wait until it answers, or raise ``TimingError``."""

    def pause(self) -> None:
        """Stop all its processes."""

    def resume(self) -> None:
        """Let them run again."""

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of all its processes so far."""

    def kv_tokens(self) -> int | None:
        """Return the room of its key-value cache."""

    def close(self) -> None:
        """End it."""


class Requests(Protocol):
    """What the session needs of the sender of requests."""

    def run(self, server: Any, tokenizer: Path, rate: float, repeat: int) -> dict[str, float]:
        """Put a server under load, and return the metrics of the run.

        Args:
            server: one that answers.
            tokenizer: folder whose tokenizer makes the prompts.
            rate: requests per second, or infinity for all at once.
            repeat: number of the run, added to the seed.

        Raises:
            TimingError: the run failed.
        """

    def close(self) -> None:
        """End it."""


class _Subject(Subject):
    """One model under measurement: its server, and its runs by rate and repeat."""

    def __init__(self, path: Path, runner: Engine) -> None:
        super().__init__(path, runner, without_tokenizer(path))
        self.server: ServedModel | None = None
        self.runs: dict[float, dict[int, dict[str, float]]] = {}
        self.kv_tokens: int | None = None
        self.ready = False

    def forget(self) -> None:
        self.runs = {}

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server, self.ready = None, False


class OnlineSession(PairSession[_Subject, OnlineProtocol]):
    """Times servers of many models against one base.

    In each repeat, each rate is run on the base and then on the compressed model, with the same requests at the same
    times. Ratios are taken repeat by repeat. A metric of the compressed model is marked ``noisy`` when the interval
    of its ratio is wider than ``noise`` times its median, and ``drifting`` when the base's own value changed by more
    than ``drift`` from the first repeat to the last.
    """

    def __init__(
        self,
        protocol: OnlineProtocol,
        *,
        logs: Path,
        open_server: Callable[[Path], ServedModel] | None = None,
        requests: Requests | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare a session.

        Args:
            protocol: what each timing does.
            logs: folder for the full logs of servers and benchmarks.
            open_server: starts a server of the checkpoint in that folder; None for the engine's own.
            requests: sends requests; None for ``vllm bench serve``.
            progress: called with what is done now.

        Raises:
            UnknownNameError: the protocol names an engine that there is not.
        """
        super().__init__(protocol, logs, open_server is not None)
        self._open, self._requests = open_server, requests
        self._report = progress or (lambda text: None)
        self._cores: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        """Choose the servers' cores and start importing vLLM in the background."""
        if self._open is None and self._missing is None:
            threads = self._protocol.threads
            self._cores = choose_cores(threads) if threads else ()
        if self._requests is None and self._missing is None:
            # Requests come from the other cores, where there are any, so that they do not slow the server.
            others = tuple(core for core in allowed_cores() if core not in self._cores) if self._cores else ()
            self._requests = Load(self._protocol, Zygote(self._logs, COMMAND, cores=others))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all processes."""
        super().__exit__(kind, error, trace)
        if self._requests is not None:
            self._requests.close()

    def _subject(self, path: Path) -> _Subject:
        return _Subject(path, self.engine)

    def _alternate(self, first: _Subject, second: _Subject) -> None:
        for repeat in range(self._protocol.repeats):
            self._repeat(first, second, repeat)

    def _repeat(self, first: _Subject, second: _Subject, repeat: int) -> None:
        rates = self._protocol.rates
        if self._protocol.residency == "one":
            for subject in (first, second):
                self._start(subject)
                for rate in rates:
                    self._run(subject, None, first.path, rate, repeat)
                subject.close()
                if first.reason:
                    return
            return
        if first.reason is None:
            for subject in (first, second):  # both start at the same time; the wait comes with the first run
                self._open_server(subject)
        self._start(first)
        if first.reason is None:
            self._start(second)
        for rate in rates:
            self._run(first, second, first.path, rate, repeat)
            if first.reason is None:
                self._run(second, first, first.path, rate, repeat)

    def _open_server(self, subject: _Subject) -> None:
        if subject.reason or subject.server is not None:
            return
        self._report(f"starting the server of {subject.path.name}")
        if self._open is not None:
            subject.server = self._open(subject.path)
            return
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"serve-{subject.path.name}-{secrets.token_hex(3)}.log"
        subject.server = Server(subject.path.resolve(), self._protocol, log, self._cores, self.engine)

    def _start(self, subject: _Subject) -> None:
        """Have the subject's server answer; a failure becomes its reason."""
        self._open_server(subject)
        if subject.reason or subject.ready:
            return
        assert subject.server is not None
        try:
            subject.server.wait(self._protocol.start_seconds)
            subject.kv_tokens, subject.ready = subject.server.kv_tokens(), True
        except TimingError as error:
            subject.reason = str(error)
            subject.close()

    def _run(self, subject: _Subject, idle: _Subject | None, tokenizer: Path, rate: float, repeat: int) -> None:
        """Put one server under load, while the ``idle`` one is stopped; a failure becomes the subject's reason."""
        if subject.reason:
            return
        assert subject.server is not None and self._requests is not None
        self._report(f"{subject.path.name}: {rate:g} requests/s, repeat {repeat + 1} of {self._protocol.repeats}")
        waiting = idle.server if idle is not None else None
        if waiting is not None:
            waiting.pause()
        subject.server.resume()
        before = (subject.server.cpu_seconds(), waiting.cpu_seconds() if waiting else 0.0)
        at = time.monotonic()
        try:
            found = self._requests.run(subject.server, tokenizer.resolve(), rate, repeat)
        except TimingError as error:
            subject.reason = str(error)
            subject.close()
            return
        seconds = time.monotonic() - at
        own = subject.server.cpu_seconds() - before[0]
        other = waiting.cpu_seconds() - before[1] if waiting else 0.0
        run = {**found, "at": at, "seconds": seconds, "cpu_seconds": own, "idle_cpu_seconds": other}
        subject.runs.setdefault(rate, {})[repeat] = run

    def _rate_timing(self, subject: _Subject, base: _Subject | None, rate: float) -> OnlineTiming:
        plan, runs = self._protocol, list(subject.runs[rate].values())
        fields: dict[str, Any] = {
            "rate": None if math.isinf(rate) else rate,
            "requests": plan.requests,
            "metrics": {name: median_interval([run[name] for run in runs]) for name in METRICS},
            "values": {key: tuple(run[key] for run in runs) for key in runs[0]},
        }
        if base is None:
            return OnlineTiming(**fields)
        originals = list(base.runs[rate].values())
        at = [run["at"] for run in originals]
        ratios, changes, marks = {}, {}, {}
        for name in METRICS:
            pairs = [own[name] / base.runs[rate][repeat][name] for repeat, own in subject.runs[rate].items()]
            ratios[name] = median_interval(pairs)
            changes[name] = drift(at, [run[name] for run in originals])
            if found := self._marks([ratios[name]], changes[name], correlation(pairs)):
                marks[name] = found
        return OnlineTiming(**fields, ratios=ratios, drift=changes, marks=marks)

    def _numbers(self, subject: _Subject, base: _Subject | None) -> dict[str, Any]:
        return {
            "kv_tokens": subject.kv_tokens,
            "online": tuple(self._rate_timing(subject, base, rate) for rate in self._protocol.rates),
            "protocol": {**self._protocol.stored(), "cores": list(self._cores or allowed_cores())},
        }
