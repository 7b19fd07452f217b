"""Timing: alternation, statistics, failures, serving processes, and once the real vLLM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.serving.client import Worker, Zygote, last_error
from bench.serving.protocol import unservable
from bench.serving.statistics import median_interval
from bench.timing import TimingProtocol, TimingSession
from methods.errors import CheckpointError, ConfigError, TimingError
from tests.tiny import tiny_checkpoint, tiny_model


def _checkpoint(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"vocab_size": 50, "max_position_embeddings": 200, **config}))
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    return folder


class Fakes:
    """Workers whose speed is set by name; ``log`` is the order of what happened."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.prompts: dict[str, list[Any]] = {}
        self.seconds = {"base": [1.0], "small": [0.5]}
        self.cpu = {"base": 1.0, "small": 1.0}
        self.fail_at: dict[tuple[str, str, int], str] = {}

    def open(self, name: str) -> Fake:
        self.log.append((name, "open"))
        return Fake(self, name)


class Fake:
    def __init__(self, all_fakes: Fakes, name: str) -> None:
        self.all, self.name, self.counts = all_fakes, name, dict.fromkeys(("load", "measure", "peak", "greedy"), 0)

    def ask(self, verb: str, timeout: float, **arguments: Any) -> Any:
        self.all.log.append((self.name, verb))
        count = self.counts[verb]
        self.counts[verb] += 1
        if (self.name, verb, count) in self.all.fail_at:
            raise TimingError(self.all.fail_at[self.name, verb, count])
        if verb == "load":
            return {"platform": "fake", "threads": 1, "dtype": arguments["options"]["dtype"]}
        if verb == "peak":
            return 1000
        self.all.prompts.setdefault(self.name, []).append(arguments["prompts"])
        times = self.all.seconds[self.name]
        wall = times[count % len(times)]
        return {
            "prefill": wall,
            "decode": 2 * wall,
            "prefill_cpu": wall * self.all.cpu[self.name],
            "decode_cpu": 2 * wall * self.all.cpu[self.name],
        }

    def close(self) -> None:
        self.all.log.append((self.name, "close"))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return _checkpoint(tmp_path / "base"), _checkpoint(tmp_path / "small")


def test_repeats_alternate_after_warm_up_and_both_see_the_same_new_prompts(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    fakes = Fakes()
    protocol = TimingProtocol(batch=3, prompt=7, generate=5)
    with TimingSession(protocol, logs=tmp_path, open_worker=fakes.open) as session:
        base, small = session.time(*pair)
    start = ["open", "load", "measure"]
    expected = [("base", verb) for verb in [*start, "measure"]] + [("small", verb) for verb in [*start, "measure"]]
    expected += [("base", "measure"), ("small", "measure")] * 4
    expected += [("base", "peak"), ("small", "peak"), ("small", "close"), ("base", "close")]
    assert fakes.log == expected
    assert fakes.prompts["base"] == fakes.prompts["small"]
    assert len({json.dumps(prompts) for prompts in fakes.prompts["base"]}) == 6
    assert np.asarray(fakes.prompts["base"]).shape == (6, 3, 7)
    assert base.prefill is not None and base.prefill.median == 3 * 7 / 1.0 and base.prefill.n == 5
    assert base.decode is not None and base.decode.median == 3 * 5 / 2.0
    assert base.prefill_ratio is None and base.weights_bytes == 100 and base.peak_bytes == 1000
    assert small.prefill_ratio is not None and small.prefill_ratio.median == 2.0
    assert small.decode_ratio is not None and small.decode_ratio.low == small.decode_ratio.high == 2.0
    assert small.protocol["noisy"] is False and small.protocol["batch"] == 3
    assert small.protocol["seconds"]["decode"] == [1.0] * 5


def test_ratio_is_taken_pair_by_pair(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fakes = Fakes()
    # The machine gets slower and slower for both: the speeds spread, the ratio does not.
    fakes.seconds = {"base": [1.0, 1.0, 2.0, 3.0, 4.0, 5.0], "small": [0.25, 0.25, 0.5, 0.75, 1.0, 1.25]}
    with TimingSession(logs=tmp_path, open_worker=fakes.open) as session:
        _, small = session.time(*pair)
    assert small.decode is not None and small.decode.high > 3 * small.decode.low
    assert small.decode_ratio is not None and small.decode_ratio.low == small.decode_ratio.high == 4.0
    assert small.protocol["noisy"] is False


@pytest.mark.parametrize(("seconds", "cpu"), [([0.5, 0.4, 0.5, 0.6, 0.5, 0.7], 1.0), ([0.5], 1.3)])
def test_noise_is_marked(pair: tuple[Path, Path], tmp_path: Path, seconds: list[float], cpu: float) -> None:
    fakes = Fakes()
    fakes.seconds["small"], fakes.cpu["small"] = seconds, cpu
    with TimingSession(TimingProtocol(extra=0), logs=tmp_path, open_worker=fakes.open) as session:
        _, small = session.time(*pair)
    assert small.protocol["noisy"] is True


def test_noisy_row_gets_more_pairs_until_it_is_calm(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fakes = Fakes()
    fakes.seconds["small"] = [0.5, 0.9, 0.9, *[0.5] * 40]  # the machine was busy for the first two repeats
    with TimingSession(logs=tmp_path, open_worker=fakes.open) as session:
        base, small = session.time(*pair)
    assert small.decode_ratio is not None and base.decode is not None
    assert 5 < small.decode_ratio.n == base.decode.n < 15
    assert small.decode_ratio.low == small.decode_ratio.high == 2.0 and small.protocol["noisy"] is False
    fakes.seconds["small"] = [0.5, 0.9]
    with TimingSession(logs=tmp_path, open_worker=fakes.open) as session:
        _, small = session.time(*pair)
    assert small.decode_ratio is not None and small.decode_ratio.n == 15 and small.protocol["noisy"] is True


def test_rounds_are_summed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fakes = Fakes()
    with TimingSession(TimingProtocol(rounds=3), logs=tmp_path, open_worker=fakes.open) as session:
        base, _ = session.time(*pair)
    assert len(fakes.prompts["base"]) == 1 + 5 * 3
    assert base.prefill is not None and base.prefill.median == 4 * 128 / 1.0
    assert base.protocol["seconds"]["prefill"] == [3.0] * 5


def test_base_process_is_kept_for_the_next_model(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fakes = Fakes()
    with TimingSession(logs=tmp_path, open_worker=fakes.open) as session:
        session.time(*pair)
        again, _ = session.time(*pair)
        alone = session.alone(pair[0])
    assert fakes.log.count(("base", "open")) == 1 and fakes.log.count(("small", "open")) == 2
    assert again.prefill is not None and again.prefill.n == 5
    assert alone.prefill == again.prefill and alone.prefill_ratio is None


def test_one_model_at_a_time(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fakes = Fakes()
    with TimingSession(TimingProtocol(residency="one"), logs=tmp_path, open_worker=fakes.open) as session:
        _, small = session.time(*pair)
    alive: set[str] = set()
    for name, event in fakes.log:
        if event == "open":
            assert not alive
            alive.add(name)
        elif event == "close":
            alive.discard(name)
    assert fakes.log.count(("base", "open")) == fakes.log.count(("small", "open")) == 5
    assert small.decode_ratio is not None and small.decode_ratio.median == 2.0 and small.peak_bytes == 1000


@pytest.mark.parametrize(
    "at", [("small", "load", 0), ("small", "measure", 0), ("small", "measure", 3), ("small", "peak", 0)]
)
def test_failing_model_gets_a_reason_and_the_base_its_numbers(
    pair: tuple[Path, Path], tmp_path: Path, at: tuple[str, str, int]
) -> None:
    fakes = Fakes()
    fakes.fail_at = {at: "out of memory"}
    with TimingSession(logs=tmp_path, open_worker=fakes.open) as session:
        base, small = session.time(*pair)
    assert small.reason == "out of memory" and small.prefill is None and small.weights_bytes is None
    assert base.prefill is not None and base.prefill.n == 5
    assert ("small", "close") in fakes.log


def test_failing_base_leaves_no_number(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fakes = Fakes()
    fakes.fail_at = {("base", "measure", 2): "died"}
    with TimingSession(logs=tmp_path, open_worker=fakes.open) as session:
        base, small = session.time(*pair)
    assert base.reason == "died" and small.reason == "the base could not be timed: died" and small.decode is None


@pytest.mark.parametrize(
    "config", [{"per_layer_config": {"0": {"num_local_experts": 3}}}, {"architectures": ["MoebenchPhimoeForCausalLM"]}]
)
def test_what_nothing_can_serve_is_refused_without_a_process(tmp_path: Path, config: dict[str, Any]) -> None:
    base, small = _checkpoint(tmp_path / "base"), _checkpoint(tmp_path / "small", **config)
    fakes = Fakes()
    with TimingSession(logs=tmp_path, open_worker=fakes.open) as session:
        _, timing = session.time(base, small)
        with pytest.raises(TimingError, match=r"per_layer_config|no class"):
            session.greedy(small, [[1]], 2)
    assert timing.reason is not None and timing.reason == unservable(small)
    assert ("small", "open") not in fakes.log
    assert unservable(base) is None


def test_settings_and_folders_that_cannot_work_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 5 repeats"):
        TimingProtocol(repeats=4)
    with pytest.raises(ConfigError, match="batch must be at least 1"):
        TimingProtocol(batch=0)
    with TimingSession(TimingProtocol(prompt=190), logs=tmp_path, open_worker=Fakes().open) as session:
        with pytest.raises(ConfigError, match=r"223 tokens.*200 positions"):
            session.time(*pair)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            session.time(tmp_path / "nowhere", pair[1])


def test_missing_vllm_is_a_reason(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with TimingSession(logs=tmp_path) as session:
        base, small = session.time(*pair)
    assert base.reason == small.reason and base.reason is not None and "install moebench" in base.reason


def test_interval_of_the_median() -> None:
    assert median_interval([2.0] * 5).model_dump() == {"median": 2.0, "low": 2.0, "high": 2.0, "n": 5}
    values = [1.0, 2.0, 3.0, 4.0, 100.0]
    one = median_interval(values, seed=3)
    assert one == median_interval(values, seed=3) and one.median == 3.0
    # Of 5^5 resamples, 58 have three or more copies of the smallest value, 1.9 %: below 2.5 %, so the lower end is not
    # 1.0 by that alone; the exact distribution of the resampled median gives the ends.
    count = {value: 0 for value in values}
    for index in np.ndindex(5, 5, 5, 5, 5):
        count[float(np.median([values[i] for i in index]))] += 1
    share = np.cumsum([count[value] for value in values]) / 5**5
    assert one.low == values[int(np.searchsorted(share, 0.025))]
    assert one.high == values[int(np.searchsorted(share, 0.975))]


# Serving processes, with an engine that needs nothing.


@pytest.fixture
def zygote(tmp_path: Path) -> Iterator[Zygote]:
    with Zygote(tmp_path / "logs", engine="tests.serving_fake") as process:
        yield process


def _gone(pid: int) -> bool:
    for _ in range(250):
        try:
            os.kill(pid, 0)
            if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_workers_are_separate_processes(zygote: Zygote) -> None:
    first, second = zygote.worker("a"), zygote.worker("b")
    assert first.ask("echo", 10, value="x") == ["x", 1]
    assert first.ask("echo", 10, value=[1]) == [[1], 2]
    assert second.ask("echo", 10, value=None) == [None, 1]
    pid = first._pid
    first.close()
    assert _gone(pid)
    assert second.ask("echo", 10, value=0) == [0, 2]


def _failure(worker: Worker, verb: str, timeout: float = 20.0, **arguments: Any) -> str:
    pid = worker._pid
    with pytest.raises(TimingError) as caught:
        worker.ask(verb, timeout, **arguments)
    assert _gone(pid)
    return str(caught.value)


def test_failures_of_a_worker_are_told_and_leave_no_process(zygote: Zygote, tmp_path: Path) -> None:
    assert "ValueError: too big" in _failure(zygote.worker("a"), "fail", message="too big")
    assert "the device fell off" in _failure(zygote.worker("b"), "die")
    assert "took longer than 1 s" in _failure(zygote.worker("c"), "hang", timeout=1.0)
    logs = [path.read_text() for path in (tmp_path / "logs").glob("a-*.log")]
    assert len(logs) == 1 and "Traceback" in logs[0]
    dead = zygote.worker("d")
    os.killpg(dead._pid, signal.SIGKILL)
    assert _gone(dead._pid)
    assert "before echo" in (told := _failure(dead, "echo", value=1)) or "during echo" in told
    child = zygote.worker("e")
    grandchild = child.ask("spawn", 10)
    assert not _gone_now(grandchild)
    child.close()
    assert _gone(grandchild)


def _gone_now(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_engine_that_cannot_be_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_FAKE_BROKEN", "1")
    with Zygote(tmp_path, engine="tests.serving_fake") as process, pytest.raises(TimingError, match="no engine here"):
        process.worker("a", 20.0)


def test_nothing_survives_the_parent(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom bench.serving.client import Zygote\n"
        f"z = Zygote(Path({str(tmp_path)!r}), engine='tests.serving_fake')\nw = z.worker('a')\n"
        "print(z._process.pid, w._pid, w.ask('spawn', 10), flush=True)\nw.ask('hang', 600)\n"
    )
    root = Path(__file__).resolve().parents[1]
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 3 and not any(map(_gone_now, pids))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert all(map(_gone, pids))


def test_last_error_skips_lines_that_only_point_elsewhere(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "INFO starting\n(Core) ValueError: no kernel for int8 experts\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    assert last_error(log) == "ValueError: no kernel for int8 experts"
    assert last_error(tmp_path / "none") == ""


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


@pytest.mark.e2e
def test_real_vllm_times_and_agrees_with_transformers(tmp_path: Path) -> None:
    base = tiny_checkpoint("mixtral", tmp_path / "base")
    small, model = _pruned_mixtral(tmp_path / "small", [0, 2, 3, 5, 7])
    broken = _checkpoint(tmp_path / "broken", **json.loads((small / "config.json").read_text()))
    prompts = np.random.default_rng(0).integers(2, 160, size=(4, 12)).tolist()
    protocol = TimingProtocol(prompt=32, generate=8, dtype="float32", threads=1)
    with TimingSession(protocol, logs=tmp_path / "logs") as session:
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
    assert second.decode_ratio is not None and second.protocol["dtype"] == "float32"
    assert failed.prefill is None and failed.reason is not None and "log: broken-" in failed.reason
    with torch.no_grad():
        expected = model.generate(torch.tensor(prompts), max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert tokens == expected[:, 12:].tolist()
