"""What only our plug-in can serve gives the same tokens and log-probabilities in vLLM as in transformers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.applying.apply import apply
from bench.checkpoint.checkpoint import Checkpoint
from bench.laws.served import TOKENS, Trial, greedy_tokens, table, write
from bench.models.load import load_model
from bench.serving.kinds import KINDS
from bench.serving.plugin import STOCK
from bench.serving.processes.client import serving_environment
from bench.serving.servable import unservable
from bench.serving.serve import serve, serve_command
from bench.timing.offline import TimingSession
from bench.timing.protocol import TimingProtocol
from methods.framework.errors import TimingError
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.support.places import ROOT
from tests.support.tiny import FAMILIES, tiny_checkpoint, tiny_tokens


def log_probabilities(path: Path, prompts: list[list[int]]) -> list[list[float]]:
    """Return the log-probability that transformers gives to every token of each prompt but its first."""
    model = load_model(path)
    found = []
    for prompt in prompts:
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        found.append([float(logits[i, token]) for i, token in enumerate(prompt[1:])])
    return found


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TimingSession]:
    with TimingSession(TimingProtocol(dtype="float32", threads=1), logs=tmp_path_factory.mktemp("logs")) as opened:
        yield opened


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint(request.param, tmp_path_factory.mktemp(request.param) / "source"))


@pytest.mark.e2e
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", FAMILIES, indirect=True)
def test_vllm_agrees_with_transformers(source: Checkpoint, kind: str, session: TimingSession, tmp_path: Path) -> None:
    path = write(source, kind, tmp_path / kind)
    prompts = tiny_tokens(3, 12, seed=5).tolist()
    expected = log_probabilities(path, prompts)
    tokens, found = session.answers(path, prompts, TOKENS)
    assert tokens == greedy_tokens(path, prompts)
    gap = max(abs(a - b) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True))
    assert gap < 1e-5, f"prompt log-probabilities differ by {gap:.2g}"
    if kind != "base":
        assert expected != log_probabilities(source.path, prompts), "it should not just repeat the original"


# Two devices, which on a CPU are two processes. The worker of the session has one; this starts its own.
_TWO_DEVICES = """
import json, sys, vllm
from pathlib import Path
from bench.serving.servable import needed_options

if __name__ == "__main__":
    path, prompts, tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    model = vllm.LLM(model=path, skip_tokenizer_init=True, dtype="float32", max_model_len=64, max_num_seqs=4,
                     tensor_parallel_size=2, distributed_executor_backend="mp", kv_cache_memory_bytes=1 << 26,
                     **needed_options(Path(path), "float32", cpu=True))
    settings = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    answers = model.generate([{"prompt_token_ids": prompt} for prompt in prompts], settings)
    print("RESULT", json.dumps([list(answer.outputs[0].token_ids) for answer in answers]), flush=True)
"""


@pytest.mark.e2e
@pytest.mark.parametrize("source", ["qwen2_moe"], indirect=True)
def test_two_devices_hold_half_the_channels_each(source: Checkpoint, tmp_path: Path) -> None:
    """Factors beside a base some of whose columns are not stored, and a shared expert, whose sum both devices reduce."""
    path = write(source, "shared_base", tmp_path / "served")
    prompts = tiny_tokens(3, 12, seed=5).tolist()
    (tmp_path / "child.py").write_text(_TWO_DEVICES)  # a file, since vLLM's workers import their parent's main module
    root = ROOT
    settings = {**serving_environment(1), "PYTHONPATH": str(root)}
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run(
            [sys.executable, str(tmp_path / "child.py"), str(path), json.dumps(prompts), str(TOKENS)],
            env=settings,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            timeout=600,
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0 and lines, (tmp_path / "log").read_text()[-3000:]
    assert json.loads(lines[-1].removeprefix("RESULT ")) == greedy_tokens(path, prompts)


def test_every_family_has_a_class() -> None:
    from bench.families.family import families, family_of
    from bench.models.tiny import tiny_config

    assert {family_of(tiny_config(name).to_dict()).architecture for name in FAMILIES} == set(STOCK)
    assert set(families()) >= set(FAMILIES)


def test_the_capability_table_numbers_its_reasons() -> None:
    found = [Trial("a", kind, "served") for kind in KINDS] + [Trial("b", kind, "too wide") for kind in KINDS]
    text = table([*found[:-1], Trial("b", list(KINDS)[-1], "differs")])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(KINDS) and rows[2].endswith("| served | no [1] |")
    assert rows[-1].endswith("| served | differs |") and text.count("too wide") == 1


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, None),
        ({"architectures": ["MoebenchMixtralForCausalLM"], "per_layer_config": {"0": {}}}, None),
        ({"architectures": ["MoebenchPhimoeForCausalLM"]}, "no class MoebenchPhimoeForCausalLM"),
        ({"architectures": ["MixtralForCausalLM"], "per_layer_config": {"0": {}}}, "ignores it"),
    ],
)
def test_what_cannot_be_served_has_a_reason(config: dict[str, object], reason: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = unservable(tmp_path)
    assert found is None if reason is None else found is not None and reason in found


def test_the_server_gets_the_options_that_a_checkpoint_needs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"kv_lora_rank": 512, "dtype": "float32"}))
    command = serve_command(tmp_path, ["--port", "1"], cpu=True)
    assert command[3:5] == ["serve", str(tmp_path)] and command[-2:] == ["--port", "1"]
    assert "--enforce-eager" in command and "CPU_MLA" in command
    assert json.loads(command[command.index("--compilation-config") + 1]) == {"custom_ops": ["-rotary_embedding"]}
    own = serve_command(tmp_path, ["--attention-backend", "TRITON_MLA"], cpu=True)
    assert own.count("--attention-backend") == 1 and "CPU_MLA" not in own, "what the user says wins"
    assert serve_command(tmp_path, [], cpu=False)[3:] == ["serve", str(tmp_path)]


def test_a_server_without_the_plugin_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_checkpoint("mixtral", tmp_path / "model")
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    with pytest.raises(TimingError, match="add moebench to it or unset it"):
        serve(str(path), [])


@pytest.mark.e2e
def test_serve_answers_over_http(tmp_path: Path) -> None:
    """A pocket model with unequal layers behind vLLM's own server completes a prompt as transformers does."""
    from bench.models.load import load_tokenizer

    checkpoint = Checkpoint.open("pocket-mixtral")
    layers = [LayerPlan(experts=tuple(range(7 - index % 3))) for index in range(len(checkpoint.inventory.layers))]
    path = apply(checkpoint, Plan.of(checkpoint.inventory, layers), tmp_path / "served")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    options = ["--port", str(port), "--host", "127.0.0.1", "--max-model-len", "128", "--dtype", "float32"]
    command = [sys.executable, "-m", "bench.cli", "serve", str(path), *options]
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen(
        command, env={**os.environ, **settings}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        text = _complete(server, f"http://127.0.0.1:{port}", str(path), "the", 12)
    except TimeoutError:
        pytest.fail((tmp_path / "server.log").read_text()[-3000:])
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        log.close()
    tokenizer, model = load_tokenizer(path), load_model(path)
    ids = tokenizer("the", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert text.split() == tokenizer.decode(expected).split()


def _complete(server: subprocess.Popen[bytes], url: str, model: str, prompt: str, tokens: int) -> str:
    """Return the completion as soon as the server is up."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    for _ in range(240):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text: str = json.load(answer)["choices"][0]["text"]
                return text
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(1)
    raise TimeoutError("no answer")
