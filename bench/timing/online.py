"""Checkpoints as servers, the base and a compressed model under load in alternation.

Both servers stay up where memory allows; while one is under load, the other one is stopped. One repeat is, for each request
rate, one run of requests against the base followed by the same requests against the compressed model.
"""

from __future__ import annotations

import importlib.util
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from bench.checkpoint.config_file import read_config
from bench.records.record import Mark, OnlineTiming, Timing
from bench.serving.processes.hardware import allowed_cores, choose_cores
from bench.serving.servable import dequantised, served_realisation, unservable
from bench.serving.serve import REMEDY, check_plugin
from bench.timing.intervals import drift, median_interval, spread
from bench.timing.protocol import DEQUANTISED, OnlineProtocol, weights_bytes
from bench.timing.servers import METRICS, Load, Server, without_tokenizer
from methods.framework.errors import ConfigError, TimingError

__all__ = ["OnlineProtocol", "OnlineSession"]


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
        """Return the metrics of one run, or raise ``TimingError``."""

    def close(self) -> None:
        """End it."""


class _Subject:
    """One model under measurement: its server, its runs by rate and repeat, and the reason that ended it."""

    def __init__(self, path: Path) -> None:
        self.path, self.reason = path, unservable(path) or without_tokenizer(path)
        self.realisation: str | None = None
        if self.reason is None:
            import torch

            cpu = not torch.cuda.is_available()
            self.realisation = served_realisation(path, cpu)
            self.reason = DEQUANTISED if dequantised(path, cpu) else None
        self.server: ServedModel | None = None
        self.runs: dict[float, dict[int, dict[str, float]]] = {}
        self.kv_tokens: int | None = None
        self.ready = False

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server, self.ready = None, False


class OnlineSession:
    """Times servers of many models against one base; the base's server is kept between calls."""

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
            open_server: starts a server of the checkpoint in that folder; None for vLLM.
            requests: sends requests; None for ``vllm bench serve``.
            progress: called with what is done now.
        """
        self._protocol, self._logs = protocol, logs
        self._open, self._requests = open_server, requests
        self._report = progress or (lambda text: None)
        self._base: _Subject | None = None
        self._cores: tuple[int, ...] = ()
        self._missing = None if open_server or importlib.util.find_spec("vllm") else f"vLLM is not installed; {REMEDY}"

    def __enter__(self) -> Self:
        """Choose the servers' cores and start importing vLLM in the background.

        Raises:
            TimingError: vLLM is told not to load our plug-in.
        """
        if self._open is None and self._missing is None:
            check_plugin()
            threads = self._protocol.threads
            self._cores = choose_cores(threads) if threads else ()
            # Requests come from the other cores, where there are any, so that they do not slow the server.
            others = tuple(core for core in allowed_cores() if core not in self._cores) if self._cores else ()
            self._requests = Load(self._protocol, self._logs, others)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all processes."""
        if self._base is not None:
            self._base.close()
        if self._requests is not None:
            self._requests.close()

    def time(self, base: Path, compressed: Path) -> tuple[Timing, Timing]:
        """Time one pair of servers.

        In each repeat, each rate is run on the base and then on the compressed model, with the same requests at the same
        times. Ratios are taken repeat by repeat. A metric of the compressed model is marked ``noisy`` when the interval
        of its ratio is wider than ``noise`` times its median, and ``drifting`` when the base's own value changed by more
        than ``drift`` from the first repeat to the last.

        Args:
            base: checkpoint folder of the original; its tokenizer makes the prompts of both.
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
            for repeat in range(self._protocol.repeats):
                self._repeat(first, second, repeat)
        finally:
            second.close()
        return self._timing(first, None), self._timing(second, first)

    def _subject(self, base: Path) -> _Subject:
        """Return the base, with its living server or its failure where it is that of the last call, and no runs."""
        if self._base is None or self._base.path != base:
            if self._base is not None:
                self._base.close()
            self._base = _Subject(base)
        self._base.runs = {}
        return self._base

    def _check_lengths(self, base: Path) -> None:
        length = self._protocol.prompt + self._protocol.generate
        limit = read_config(base).get("max_position_embeddings")
        if limit is not None and length > limit:
            raise ConfigError(f"prompt + generate = {length} tokens, but {base} has {limit} positions; lower them")

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
        import torch

        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"serve-{subject.path.name}-{secrets.token_hex(3)}.log"
        cpu = not torch.cuda.is_available()
        subject.server = Server(subject.path.resolve(), self._protocol, log, self._cores, cpu)

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
            found: dict[Mark, bool] = {
                "noisy": spread(ratios[name]) > plan.noise,
                "drifting": abs(changes[name]) > plan.drift,
            }
            if any(found.values()):
                marks[name] = tuple(mark for mark, true in found.items() if true)
        return OnlineTiming(**fields, ratios=ratios, drift=changes, marks=marks)

    def _timing(self, subject: _Subject, base: _Subject | None) -> Timing:
        realisation = subject.realisation if base is not None or subject.realisation == "dense" else None
        if subject.reason:
            return Timing(reason=subject.reason, realisation=realisation)
        if base is not None and base.reason:
            return Timing(reason=f"the base could not be timed: {base.reason}", realisation=realisation)
        protocol = asdict(self._protocol)
        protocol["rates"] = ["inf" if math.isinf(rate) else rate for rate in self._protocol.rates]
        return Timing(
            weights_bytes=weights_bytes(subject.path),
            kv_tokens=subject.kv_tokens,
            online=tuple(self._rate_timing(subject, base, rate) for rate in self._protocol.rates),
            protocol={**protocol, "cores": list(self._cores or allowed_cores())},
            realisation=realisation,
        )
