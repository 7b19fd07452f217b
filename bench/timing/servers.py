"""Servers under load: ``moebench serve`` on one checkpoint, measured by vLLM's own ``vllm bench serve``."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from bench.checkpoint.tokenizer_files import own_code
from bench.serving.engine import Engine
from bench.serving.processes.client import Zygote, last_error, serving_environment
from bench.settings.timing_settings import OnlineProtocol
from methods.framework.errors import TimingError

METRICS = {
    "request_throughput": "request_throughput",
    "ttft_median_ms": "median_ttft_ms",
    "ttft_p99_ms": "p99_ttft_ms",
    "itl_median_ms": "median_itl_ms",
    "itl_p99_ms": "p99_itl_ms",
}
"""Our names of the metrics, and those in the result file of ``vllm bench serve``."""
COMMAND = "bench.serving.processes.vllm_cli"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not know this machine's ports
_CACHE = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.M)


def without_tokenizer(path: Path) -> str | None:
    """Return why a server of the checkpoint at ``path`` cannot be measured, or None; only looks for a tokenizer."""
    if (code := own_code(path)) is not None:
        made = f"the tokenizer in {path} is made by Python code of its own ({code})"
        return f"{made}, which no timing runs; time it without --online"
    if any((path / name).exists() for name in _TOKENIZERS):
        return None
    return (
        f"{path} has no tokenizer ({', '.join(_TOKENIZERS)}), and the benchmark of vLLM sends text and counts tokens; "
        "copy the original model's tokenizer files there, or time it without --online"
    )


def free_port() -> int:
    """Return a port of this machine that nobody listens on at this moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def server_environment(threads: int | None) -> dict[str, str]:
    """Return the environment of a server's processes.

    Args:
        threads: OpenMP threads, None for the current setting.
    """
    environment = serving_environment(threads)
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)  # a server's engine has a process of its own
    return environment


def load_options(
    protocol: OnlineProtocol, url: str, model: Path, tokenizer: Path, rate: float, repeat: int, result: Path
) -> list[str]:
    """Return the words after ``vllm`` that put one server under load.

    Args:
        protocol: lengths, requests, warm-up and seed.
        url: of the server.
        model: checkpoint folder, by which the server calls its model.
        tokenizer: folder whose tokenizer makes the prompts; the base's for all models, so that they get the same ones.
        rate: requests per second.
        repeat: added to the seed.
        result: JSON file that is written.
    """
    options = {
        "--backend": "vllm",
        "--base-url": url,
        "--endpoint": "/v1/completions",
        "--model": model,
        "--tokenizer": tokenizer,
        "--dataset-name": "random",
        "--random-input-len": protocol.prompt,
        "--random-output-len": protocol.generate,
        "--num-prompts": protocol.requests,
        "--num-warmups": protocol.warmup,
        "--request-rate": "inf" if math.isinf(rate) else rate,
        "--seed": protocol.seed + repeat,
        "--temperature": 0,
        "--percentile-metrics": "ttft,itl",
        "--metric-percentiles": "99",
        "--result-dir": result.parent,
        "--result-filename": result.name,
    }
    flags = [word for name, value in options.items() for word in (name, str(value))]
    return ["bench", "serve", *flags, "--ignore-eos", "--save-result", "--disable-tqdm"]


def read_result(path: Path, protocol: OnlineProtocol) -> dict[str, float]:
    """Return the metrics of one run of ``vllm bench serve``.

    Raises:
        TimingError: there is no result, a request failed, or answers have another length than asked for.
    """
    try:
        found = json.loads(path.read_text())
        values = {name: float(found[key]) for name, key in METRICS.items()}
        completed, tokens = int(found["completed"]), int(found["total_output_tokens"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TimingError(
            f"vllm bench serve left no result that can be read ({type(error).__name__}: {error})"
        ) from None
    if unusable := {name: value for name, value in values.items() if not 0 < value < math.inf}:
        raise TimingError(f"vllm bench serve gave {unusable}, which has no ratio; generate more tokens")
    if completed != protocol.requests:
        raise TimingError(
            f"only {completed} of {protocol.requests} requests were answered; lower the rate or see the log"
        )
    if tokens != protocol.requests * protocol.generate:
        asked = protocol.requests * protocol.generate
        raise TimingError(f"{tokens} tokens came back where {asked} were asked for, so the times are not comparable")
    return values


class Server:
    """``moebench serve`` on one checkpoint, in a process group of its own that ends with this process."""

    def __init__(self, path: Path, protocol: OnlineProtocol, log: Path, cores: tuple[int, ...], runner: Engine) -> None:
        """Start the server, and do not wait for it.

        Args:
            path: checkpoint folder.
            protocol: lengths, limits and threads.
            log: file that its output is appended to.
            cores: processor cores that it is bound to, none to leave it free.
            runner: engine whose server it is.

        Raises:
            TimingError: the engine has no server, or its environment does not let it serve our checkpoints.
        """
        self.path, self._log = path, log
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = runner.server_command(path, runner.server_arguments(protocol, port), cores)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.serving.processes.leash", *command],
                stdin=subprocess.PIPE,  # nobody writes to it; it closes when this process ends, however that happens
                stdout=subprocess.PIPE,
                stderr=output,
                env=server_environment(protocol.threads),
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self._group = int(self._process.stdout.readline() or 0)

    def wait(self, seconds: float) -> None:
        """Wait until the server answers.

        Raises:
            TimingError: it ended, or did not answer within ``seconds``; with the end of its log.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise TimingError(self._story(f"ended with code {self._process.returncode}"))
            with contextlib.suppress(OSError), _LOCAL.open(f"{self.url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.25)
        raise TimingError(self._story(f"did not answer within {seconds:.0f} s"))

    def check(self) -> None:
        """Raise ``TimingError`` with the end of the log where the server has ended."""
        if self._process.poll() is not None:
            raise TimingError(self._story(f"ended under load with code {self._process.returncode}"))

    def pause(self) -> None:
        """Stop all its processes: an idle server takes a tenth of a core, which the one under load should have."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let its processes run again."""
        self._signal(signal.SIGCONT)

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of all its processes so far."""
        total = 0.0
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self._group)
            for one in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = one.cpu_times()
                    total += times.user + times.system
        return total

    def kv_tokens(self) -> int | None:
        """Return how many tokens its key-value cache holds, as its metrics tell; None where they do not."""
        try:
            with _LOCAL.open(f"{self.url}/metrics", timeout=30) as answer:
                found = _CACHE.search(answer.read().decode())
        except OSError:
            return None
        labels = dict(re.findall(r'(\w+)="([^"]*)"', found.group(1))) if found else {}
        try:
            return int(labels["num_gpu_blocks"]) * int(labels["block_size"])
        except (KeyError, ValueError):
            return None

    def close(self) -> None:
        """End all its processes."""
        self._signal(signal.SIGKILL)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._group and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._group, number)

    def _story(self, what: str) -> str:
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        end = "\n".join(line[:300] for line in text.splitlines()[-12:])
        return (
            f"the server of {self.path.name} {what}: {last_error(self._log)} (log: {self._log.name}, its end:)\n{end}"
        )


class Load:
    """Runs ``vllm bench serve``, each run in a fresh process."""

    def __init__(self, protocol: OnlineProtocol, zygote: Zygote) -> None:
        """Prepare runs in forks of ``zygote``, whose workers know the verb of ``COMMAND``."""
        self._protocol, self._zygote = protocol, zygote

    def run(self, server: Any, tokenizer: Path, rate: float, repeat: int) -> dict[str, float]:
        """Return the metrics of one run under load; see ``load_options``.

        Args:
            server: one that answers.
            tokenizer: folder whose tokenizer makes the prompts.
            rate: requests per second, or infinity for all at once.
            repeat: number of the run, added to the seed.

        Raises:
            TimingError: the run failed, took too long, or not all requests were answered in full.
        """
        plan = self._protocol
        with tempfile.TemporaryDirectory(prefix="moebench-") as folder:
            result = Path(folder) / "result.json"
            worker = self._zygote.worker(f"load-{server.path.name}", plan.start_seconds)
            try:
                words = load_options(plan, server.url, server.path, tokenizer, rate, repeat, result)
                worker.ask("command", plan.run_seconds, arguments=words)
            finally:
                worker.close()
            server.check()
            return read_result(result, plan)

    def close(self) -> None:
        """End all processes."""
        self._zygote.close()
