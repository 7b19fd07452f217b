"""Servers under load: alternation, statistics, failures, processes that never survive, and once the real vLLM."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.commands.time_command import time_models
from bench.serving.engine import Engine, engine_named
from bench.settings.strict import validated
from bench.settings.timing_settings import OnlineProtocol
from bench.timing.online import OnlineSession
from bench.timing.servers import METRICS, load_options, read_result, without_tokenizer
from bench.timing.table import online_table
from methods.framework.errors import ConfigError, TimingError


def _checkpoint(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"vocab_size": 50, "max_position_embeddings": 200, **config}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    return folder


class Fakes:
    """Servers and requests whose times are set by name; ``log`` is the order of what happened."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.tokenizers: set[str] = set()
        self.running: set[str] = set()
        self.milliseconds = {"base": [100.0], "small": [50.0]}
        self.fail_at: dict[tuple[Any, ...], str] = {}

    def open(self, path: Path) -> FakeServer:
        self._event(path.name, "open")
        return FakeServer(self, path)

    def run(self, server: FakeServer, tokenizer: Path, rate: float, repeat: int) -> dict[str, float]:
        name = server.path.name
        assert self.running == {name}, "the other server must not take part of the processor"
        self._event(name, rate, repeat)
        self.tokenizers.add(tokenizer.name)
        own = self.milliseconds[name]
        value = own[repeat % len(own)]
        return {**dict.fromkeys(METRICS, value), "request_throughput": 1000 / value}

    def close(self) -> None:
        self.log.append(("requests", "close"))

    def _event(self, *event: Any) -> None:
        self.log.append(event)
        if event in self.fail_at:
            raise TimingError(self.fail_at[event])


class FakeServer:
    def __init__(self, fakes: Fakes, path: Path) -> None:
        self.fakes, self.path = fakes, path

    def wait(self, seconds: float) -> None:
        self.fakes._event(self.path.name, "wait")

    def pause(self) -> None:
        self.fakes.running.discard(self.path.name)

    def resume(self) -> None:
        self.fakes.running.add(self.path.name)

    def cpu_seconds(self) -> float:
        return 1.0

    def kv_tokens(self) -> int | None:
        return 640

    def close(self) -> None:
        self.fakes.log.append((self.path.name, "close"))
        self.pause()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return _checkpoint(tmp_path / "base"), _checkpoint(tmp_path / "small")


def _time(fakes: Fakes, pair: tuple[Path, Path], protocol: OnlineProtocol) -> Any:
    with OnlineSession(protocol, logs=pair[0], open_server=fakes.open, requests=fakes) as session:
        return session.time(*pair)


def test_servers_start_together_and_are_loaded_in_turn(pair: tuple[Path, Path]) -> None:
    fakes = Fakes()
    base, small = _time(fakes, pair, OnlineProtocol(rates=(2.0, 4.0)))
    starts = [("base", "open"), ("small", "open"), ("base", "wait"), ("small", "wait")]
    runs = [(name, rate, repeat) for repeat in range(5) for rate in (2.0, 4.0) for name in ("base", "small")]
    assert fakes.log == [*starts, *runs, ("small", "close"), ("base", "close"), ("requests", "close")]
    assert fakes.tokenizers == {"base"}, "both models get the prompts that the base's tokenizer makes"
    assert [one.rate for one in small.online] == [2.0, 4.0] and base.online[0].ratios == {}
    assert base.online[1].metrics["ttft_p99_ms"].median == 100.0 and base.kv_tokens == 640
    assert small.online[0].ratios["itl_median_ms"].median == 0.5 and small.online[0].ratios["itl_median_ms"].n == 5
    assert small.online[0].ratios["request_throughput"].median == 2.0
    assert small.online[0].marks == {} and small.protocol["requests"] == 32


def test_one_server_at_a_time(pair: tuple[Path, Path]) -> None:
    fakes = Fakes()
    _, small = _time(fakes, pair, OnlineProtocol(rates=(2.0, 4.0), residency="one"))
    alive: set[str] = set()
    for event in fakes.log:
        if event[1] == "open":
            assert not alive
            alive.add(event[0])
        elif event[1] == "close":
            alive.discard(event[0])
    opened = [event for event in fakes.log if event[1] == "open"]
    assert opened == [("base", "open"), ("small", "open")] * 5 and small.online[1].ratios["itl_p99_ms"].median == 0.5


def test_ratios_are_pairs_and_marks_name_their_metric(pair: tuple[Path, Path]) -> None:
    fakes = Fakes()
    fakes.milliseconds = {"base": [100.0, 110.0, 120.0, 130.0, 140.0], "small": [50.0, 55.0, 60.0, 65.0, 70.0]}
    _, small = _time(fakes, pair, OnlineProtocol(rates=(math.inf,)))
    one = small.online[0]
    assert one.rate is None and json.loads(small.model_dump_json())["protocol"]["rates"] == ["inf"]
    assert one.ratios["ttft_median_ms"].low == one.ratios["ttft_median_ms"].high == 0.5
    assert one.marks == dict.fromkeys(METRICS, ("drifting",)) and one.drift["ttft_median_ms"] > 0.3
    fakes.milliseconds = {"base": [100.0], "small": [100.0, 130.0, 80.0, 120.0, 95.0]}
    _, small = _time(fakes, pair, OnlineProtocol(rates=(1.0,)))
    assert small.online[0].marks == dict.fromkeys(METRICS, ("noisy",))
    assert len(small.online[0].values["itl_p99_ms"]) == 5


def test_the_table_says_no_difference(pair: tuple[Path, Path]) -> None:
    fakes = Fakes()
    fakes.milliseconds["small"] = [99.0, 101.0, 100.5, 99.5, 100.0]
    rows = list(zip(("base", "small"), _time(fakes, pair, OnlineProtocol(rates=(1.0,))), strict=True))
    cells = [list(column.cells) for column in online_table(rows).columns]
    assert all(str(text).endswith("no difference") for text in cells[4][5:]) and cells[4][:5] == [""] * 5
    fakes.milliseconds["small"] = [50.0]
    rows = list(zip(("base", "small"), _time(fakes, pair, OnlineProtocol(rates=(1.0,))), strict=True))
    said = [str(text).split()[-1] for text in list(online_table(rows).columns[4].cells)[5:]]
    assert said == ["better"] * 5, "twice the throughput and half the latency are both better"


@pytest.mark.parametrize("at", [("small", "wait"), ("small", 2.0, 0), ("small", 2.0, 3)])
def test_failing_model_gets_a_reason_and_the_base_its_numbers(pair: tuple[Path, Path], at: tuple[Any, ...]) -> None:
    fakes = Fakes()
    fakes.fail_at = {at: "out of memory"}
    base, small = _time(fakes, pair, OnlineProtocol(rates=(2.0,)))
    assert small.reason == "out of memory" and small.online == ()
    assert base.reason is None and base.online[0].metrics["itl_p99_ms"].n == 5
    assert fakes.log.count(("small", "close")) == 1


def test_failing_base_leaves_no_number_and_no_server(pair: tuple[Path, Path]) -> None:
    fakes = Fakes()
    fakes.fail_at = {("base", 2.0, 1): "died"}
    base, small = _time(fakes, pair, OnlineProtocol(rates=(2.0,)))
    assert base.reason == "died" and small.reason == "the base could not be timed: died"
    assert ("small", "close") in fakes.log and ("base", "close") in fakes.log


def test_base_server_is_kept_for_the_next_model(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fakes = Fakes()
    with OnlineSession(OnlineProtocol(rates=(2.0,)), logs=tmp_path, open_server=fakes.open, requests=fakes) as session:
        session.time(*pair)
        again, _ = session.time(*pair)
    assert fakes.log.count(("base", "open")) == 1 and fakes.log.count(("small", "open")) == 2
    assert again.online[0].metrics["itl_p99_ms"].n == 5


def test_what_cannot_be_served_or_measured_has_a_reason(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fakes, protocol = Fakes(), OnlineProtocol(rates=(2.0,))
    mixed = _checkpoint(tmp_path / "mixed", per_layer_config={"0": {}})
    assert "stock class" in str(_time(fakes, (pair[0], mixed), protocol)[1].reason)
    (pair[1] / "tokenizer.json").unlink()
    assert "copy the original model's tokenizer" in str(_time(fakes, pair, protocol)[1].reason)
    assert without_tokenizer(pair[0]) is None and ("small", "open") not in fakes.log
    with pytest.raises(ConfigError, match=r"prompt \+ generate = 232 tokens.*200 positions"):
        _time(fakes, pair, OnlineProtocol(rates=(2.0,), prompt=200))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rates": ()}, "give --rate"),
        ({"rates": (1.0, -1.0)}, "positive request rates"),
        ({"rates": (math.nan,)}, "positive request rates"),
        ({"rates": (1.0, 1.0)}, "each once"),
        ({"rates": (1.0,), "repeats": 4}, "repeats: should be at least 5, found 4"),
        ({"rates": (1.0,), "requests": 0}, "requests: should be at least 1, found 0"),
        ({"rates": (1.0,), "generate": 1}, "generate: should be at least 2, found 1"),
    ],
)
def test_settings_that_give_no_fair_number_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validated(fields, OnlineProtocol, "options")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"online": True}, "give --rate"),
        ({"online": True, "rates": [1.0], "batches": [4]}, "without a server"),
        ({"online": True, "rates": [1.0], "settings": {"rounds": 2}}, "without a server"),
        ({"rates": [1.0]}, "add --online"),
        ({"requests": 3}, "add --online"),
        ({"batches": [0]}, r"options: batch: batch sizes are at least 1.*found 0"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(given: dict[str, Any], said: str) -> None:
    options = {"settings": {}, "batches": [], "rates": [], "requests": None, "online": False, **given}
    with pytest.raises(ConfigError, match=said):
        time_models("pocket-mixtral", ["pocket-mixtral"], report=print, **options)


def test_both_models_get_the_same_options(tmp_path: Path) -> None:
    protocol = OnlineProtocol(rates=(2.5, math.inf), prompt=40, generate=10, seed=3)
    words = engine_named("vllm-cpu").server_arguments(protocol, 81)
    assert words[words.index("--port") + 1] == "81" and words[words.index("--max-model-len") + 1] == "50"
    assert "--no-enable-prefix-caching" in words and "uni" in words
    assert "uni" not in engine_named("vllm-gpu").server_arguments(protocol, 81)
    result = tmp_path / "x" / "result.json"
    first = load_options(protocol, "http://a", tmp_path / "base", tmp_path / "base", 2.5, 4, result)
    second = load_options(protocol, "http://b", tmp_path / "small", tmp_path / "base", 2.5, 4, result)
    differ = [one for one, other in zip(first, second, strict=True) if one != other]
    assert differ == ["http://a", str(tmp_path / "base")]
    assert first[first.index("--seed") + 1] == "7" and first[first.index("--request-rate") + 1] == "2.5"
    at_once = load_options(protocol, "http://a", tmp_path, tmp_path, math.inf, 0, result)
    assert at_once[at_once.index("--request-rate") + 1] == "inf"


def _result(path: Path, **changes: Any) -> Path:
    good = {**dict.fromkeys(METRICS.values(), 2.0), "completed": 3, "total_output_tokens": 12}
    path.write_text(json.dumps({**good, **changes}))
    return path


def test_results_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    protocol, path = OnlineProtocol(rates=(1.0,), requests=3, generate=4), tmp_path / "result.json"
    assert read_result(_result(path), protocol) == dict.fromkeys(METRICS, 2.0)
    with pytest.raises(TimingError, match="only 2 of 3 requests"):
        read_result(_result(path, completed=2), protocol)
    with pytest.raises(TimingError, match="11 tokens came back where 12"):
        read_result(_result(path, total_output_tokens=11), protocol)
    with pytest.raises(TimingError, match=r"itl_median_ms.*no ratio"):
        read_result(_result(path, median_itl_ms=0.0), protocol)
    with pytest.raises(TimingError, match="no result that can be read"):
        read_result(tmp_path / "none", protocol)


_ANSWERS = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(b'vllm:cache_config_info{block_size="16",num_gpu_blocks="40"} 1.0\\n')
    def log_message(self, *a): pass
print("serving", *sys.argv[1:], flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class _Answering(Engine):
    """An engine whose servers are processes that answer."""

    name = "answering"

    def missing(self) -> str | None:
        return None

    def refuses(self, path: Path) -> str | None:
        return None

    def server_arguments(self, protocol: OnlineProtocol, port: int) -> list[str]:
        return [str(port), f"prompt={protocol.prompt}"]

    def server_command(self, path: Path, arguments: Sequence[str], cores: tuple[int, ...] = ()) -> list[str]:
        return [sys.executable, "-c", _ANSWERS, *arguments, str(path), f"cores={len(cores)}"]


def test_servers_are_the_engines_own(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.timing.session.engine_here", _Answering)
    fakes = Fakes()
    monkeypatch.setattr(fakes, "run", lambda server, *_: dict.fromkeys(METRICS, 2.0 if server.path == pair[1] else 1.0))
    protocol = OnlineProtocol(rates=(2.0,), prompt=9, threads=1)
    with OnlineSession(protocol, logs=tmp_path / "logs", requests=fakes) as session:
        base, small = session.time(*pair)
    assert base.kv_tokens == small.kv_tokens == 640 and small.online[0].ratios["itl_p99_ms"].median == 2.0
    logs = {path.name.split("-")[1]: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert set(logs) == {"base", "small"} and len(base.protocol["cores"]) == 1
    for name, folder in zip(("base", "small"), pair, strict=True):
        assert logs[name].endswith(f"prompt=9 {folder} cores=1\n")
