"""The real vLLM under measurement, without a server and as one."""

from __future__ import annotations

import json
import math
import os
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.applying.apply import apply
from bench.checkpoint.checkpoint import Checkpoint
from bench.models.load import load_model, load_tokenizer
from bench.serving.engine import engine_here
from bench.serving.processes.client import Zygote
from bench.serving.processes.hardware import choose_cores
from bench.settings.timing_settings import OnlineProtocol
from bench.timing.offline import TimingSession
from bench.timing.online import OnlineSession
from bench.timing.servers import METRICS, Load, Server
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.bench.serving.processes.test_client import gone
from tests.support.tiny import tiny_checkpoint, tiny_model

pytestmark = pytest.mark.e2e


def _pruned_mixtral(folder: Path, kept: list[int]) -> tuple[Path, Any]:
    model = tiny_model("mixtral")
    small = tiny_model("mixtral", num_local_experts=len(kept))
    state = model.state_dict()
    for name, value in state.items():
        if ".experts." in name or name.endswith("gate.weight"):
            state[name] = value[kept]
    small.load_state_dict(state)
    small.save_pretrained(folder)
    return folder, small


def test_real_vllm_times_and_agrees_with_transformers(session: TimingSession, tmp_path: Path) -> None:
    base = tiny_checkpoint("mixtral", tmp_path / "base")
    small, model = _pruned_mixtral(tmp_path / "small", [0, 2, 3, 5, 7])
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copy(small / "config.json", broken)
    (broken / "model.safetensors").write_bytes(b"x" * 100)
    prompts = np.random.default_rng(0).integers(2, 160, size=(4, 12)).tolist()
    first, second = session.time(base, small)
    failed = session.time(base, broken)[1]
    tokens = session.greedy(small, prompts, 8)
    assert first.reason is None and second.reason is None, (first.reason, second.reason)
    for timing in (first, second):
        assert timing.prefill is not None and timing.prefill.low > 0 and 5 <= timing.prefill.n <= 15
        assert timing.decode is not None and timing.decode.low > 0
        assert timing.peak_bytes is not None and timing.peak_bytes > 10**8
    assert first.weights_bytes is not None and second.weights_bytes is not None
    assert second.weights_bytes < first.weights_bytes
    assert first.parameter_bytes is not None and second.parameter_bytes is not None
    saved = first.weights_bytes - second.weights_bytes
    assert abs(first.parameter_bytes - second.parameter_bytes - saved) < 0.02 * saved
    assert first.kv_tokens == second.kv_tokens and first.kv_tokens is not None and first.kv_tokens > 4 * 41
    assert [one.batch for one in second.batches] == [4, 1] and len(second.protocol["cores"]) == 1
    assert second.decode_ratio is not None and second.protocol["dtype"] == "float32"
    assert failed.prefill is None and failed.reason is not None and "log: broken-" in failed.reason
    with torch.no_grad():
        expected = model.generate(torch.tensor(prompts), max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert tokens == expected[:, 12:].tolist()


class _SharedLoad(Load):
    """Sends requests from forks of a process that others need, too."""

    def close(self) -> None:
        pass


class _SharedServer(Server):
    """One server for both models: starting one costs three imports of vLLM, and who closes it here is the test."""

    def close(self) -> None:
        pass


def test_a_real_server_is_timed_and_completes_a_prompt_as_transformers_does(zygote: Zygote, tmp_path: Path) -> None:
    """What is left of a pocket model, with another number of experts in each layer, against itself behind vLLM's own server."""
    checkpoint = Checkpoint.open("pocket-mixtral")
    layers = [LayerPlan(experts=tuple(range(7 - index % 3))) for index in range(len(checkpoint.inventory.layers))]
    path = apply(checkpoint, Plan.of(checkpoint.inventory, layers), tmp_path / "small")
    protocol = OnlineProtocol(rates=(math.inf,), requests=4, prompt=24, generate=6, dtype="float32", threads=1)
    server = _SharedServer(path, protocol, tmp_path / "log", choose_cores(1), engine_here())
    requests = _SharedLoad(protocol, zygote)
    try:
        with OnlineSession(protocol, logs=tmp_path, open_server=lambda path: server, requests=requests) as session:
            base, again = session.time(path, path)
        answered = _completed(server, "the", 12)
    finally:
        Server.close(server)
    assert base.reason is None and again.reason is None, (base.reason, again.reason)
    assert gone(server._process.pid) and gone(server._group)
    assert not any("-m bench.serving" in line and str(tmp_path) in line for line in _all())
    for timing in (base, again):
        assert timing.kv_tokens is not None and timing.kv_tokens > 64
        (one,) = timing.online
        assert one.rate is None and one.metrics["ttft_median_ms"].low > 0
        assert one.metrics["ttft_p99_ms"].median >= one.metrics["ttft_median_ms"].median
    (one,) = again.online
    assert all(one.ratios[name].n == 5 for name in METRICS) and min(one.values["cpu_seconds"]) > 0
    tokenizer, model = load_tokenizer(path), load_model(path)
    ids = tokenizer("the", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert answered.split() == tokenizer.decode(expected).split()


def _completed(server: Server, prompt: str, tokens: int) -> str:
    """Return the completion that a server that is up gives over HTTP."""
    body = {"model": str(server.path), "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        text: str = json.load(answer)["choices"][0]["text"]
    return text


def _all() -> list[str]:
    """Return the command lines of all processes of this user that can be read."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                found.append(Path(entry.path, "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
    return found
