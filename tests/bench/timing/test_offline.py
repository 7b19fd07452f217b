"""Timing: alternation, statistics, failures, serving processes, and once the real vLLM."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bench.records.record import Timing
from bench.serving.servable import unservable
from bench.settings.strict import validated
from bench.settings.timing_settings import TimingProtocol
from bench.timing.offline import TimingSession
from bench.timing.table import memory_table, offline_table, write_timings
from methods.framework.errors import CheckpointError, ConfigError, TimingError


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
        self.facts: dict[str, Any] = {}
        self.options: dict[str, dict[str, Any]] = {}

    def open(self, name: str) -> Fake:
        self.log.append((name, "open"))
        return Fake(self, name)


class Fake:
    def __init__(self, all_fakes: Fakes, name: str) -> None:
        self.all, self.name, self.counts = all_fakes, name, dict.fromkeys(("load", "measure", "peak", "gpu"), 0)

    def ask(self, verb: str, timeout: float, **arguments: Any) -> Any:
        self.all.log.append((self.name, verb))
        count = self.counts[verb]
        self.counts[verb] += 1
        if (self.name, verb, count) in self.all.fail_at:
            raise TimingError(self.all.fail_at[self.name, verb, count])
        if verb == "load":
            self.all.options[self.name] = arguments["options"]
            return {"platform": "fake", "threads": 1, "dtype": arguments["options"]["dtype"], **self.all.facts}
        if verb == "gpu":
            return {"sm_clock_mhz": 1400}
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
    assert small.marks == () and small.protocol["batch"] == 3
    assert small.batches[0].seconds["decode"] == (1.0,) * 5
    assert len(small.batches) == 1 and small.batches[0].decode_ratio == small.decode_ratio


def test_ratio_is_taken_pair_by_pair(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fakes = Fakes()
    # The machine gets slower and slower for both: the speeds spread, the ratio does not.
    fakes.seconds = {"base": [1.0, 1.0, 2.0, 3.0, 4.0, 5.0], "small": [0.25, 0.25, 0.5, 0.75, 1.0, 1.25]}
    with TimingSession(logs=tmp_path, open_worker=fakes.open) as session:
        _, small = session.time(*pair)
    assert small.decode is not None and small.decode.high > 3 * small.decode.low
    assert small.decode_ratio is not None and small.decode_ratio.low == small.decode_ratio.high == 4.0
    assert small.marks == ("drifting",), "the ratio is calm, but the machine was not the same at the end"


@pytest.mark.parametrize(
    ("seconds", "cpu", "mark"), [([0.5, 0.4, 0.5, 0.6, 0.5, 0.7], 1.0, "noisy"), ([0.5], 1.3, "uneven")]
)
def test_noise_is_marked(pair: tuple[Path, Path], tmp_path: Path, seconds: list[float], cpu: float, mark: str) -> None:
    fakes = Fakes()
    fakes.seconds["small"], fakes.cpu["small"] = seconds, cpu
    with TimingSession(TimingProtocol(extra=0), logs=tmp_path, open_worker=fakes.open) as session:
        _, small = session.time(*pair)
    assert small.marks == (mark,)


def test_noisy_row_gets_more_pairs_until_it_is_calm(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fakes = Fakes()
    fakes.seconds["small"] = [0.5, 0.9, 0.5, 0.9, *[0.5] * 40]  # the machine was busy in two of the first three repeats
    with TimingSession(TimingProtocol(extra=20), logs=tmp_path, open_worker=fakes.open) as session:
        base, small = session.time(*pair)
    assert small.decode_ratio is not None and base.decode is not None
    assert 5 < small.decode_ratio.n == base.decode.n < 25
    assert small.decode_ratio.low == small.decode_ratio.high == 2.0 and small.marks == ()
    fakes.seconds["small"] = [0.5, 0.9]
    with TimingSession(TimingProtocol(extra=20), logs=tmp_path, open_worker=fakes.open) as session:
        _, small = session.time(*pair)
    assert small.decode_ratio is not None and small.decode_ratio.n == 25 and small.marks == ("noisy",)


def test_several_batch_sizes_share_one_process_and_alternate(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fakes = Fakes()
    with TimingSession(TimingProtocol(batch=(2, 6)), logs=tmp_path, open_worker=fakes.open) as session:
        base, small = session.time(*pair)
    events = [event for event in fakes.log if event[1] in ("open", "measure")]
    start = ["open", "measure", "measure", "measure"]  # warm-up of both sizes, then the first batch of size 2
    expected = [("base", verb) for verb in start] + [("small", verb) for verb in start]
    expected += [("base", "measure"), ("small", "measure")] * 9
    assert events == expected
    sizes = [len(prompts) for prompts in fakes.prompts["small"]]
    assert sizes == [2, 6] + [2, 6] * 5 and fakes.prompts["base"] == fakes.prompts["small"]
    assert fakes.options["base"]["max_num_seqs"] == 6 and fakes.options["base"]["max_num_batched_tokens"] == 6 * 128
    assert [one.batch for one in small.batches] == [2, 6]
    assert [one.decode.median for one in base.batches] == [2 * 32 / 2.0, 6 * 32 / 2.0]
    assert small.decode == small.batches[0].decode and small.prefill_ratio == small.batches[0].prefill_ratio
    assert all(one.decode_ratio is not None and one.decode_ratio.median == 2.0 for one in small.batches)
    assert all(one.decode_ratio is None and one.marks == () for one in base.batches)


def test_only_the_noisy_batch_size_gets_more_pairs(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fakes = Fakes()
    # Two warm-ups, then sizes 2 and 6 in turn: size 6 is wild throughout.
    fakes.seconds["small"] = [0.5, 0.5, *[0.5, 0.3, 0.5, 0.9, 0.5, 0.5, 0.5, 0.2, 0.5, 0.7], 0.3, 1.3, 0.4, 0.6]
    with TimingSession(TimingProtocol(batch=(2, 6), extra=4), logs=tmp_path, open_worker=fakes.open) as session:
        _, small = session.time(*pair)
    calm, wild = small.batches
    assert calm.decode_ratio is not None and calm.decode_ratio.n == 5 and calm.marks == ()
    assert wild.decode_ratio is not None and wild.decode_ratio.n == 9 and wild.marks == ("noisy",)


def test_drift_is_measured_on_the_base_over_time(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("bench.timing.offline.time.monotonic", lambda: float(next(clock)))
    fakes = Fakes()
    fakes.seconds = {"base": [9.0, 1.0, 1.03, 1.06, 1.09, 1.12], "small": [0.5]}
    with TimingSession(TimingProtocol(noise=0.5, extra=0), logs=tmp_path, open_worker=fakes.open) as session:
        _, small = session.time(*pair)
    change = small.batches[0].drift
    assert change is not None and abs(change - 0.12) < 0.005 and small.marks == ("drifting", "correlated")
    fakes.seconds["base"] = [9.0, 1.0, 1.0, 3.0, 1.0, 1.0]
    with TimingSession(TimingProtocol(noise=9.0), logs=tmp_path, open_worker=fakes.open) as session:
        _, small = session.time(*pair)
    assert small.batches[0].drift == 0.0 and small.marks == (), "one slow repeat is noise, not drift"


def test_memory_is_reported_and_a_cache_that_is_too_small_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fakes = Fakes()
    # 4 sequences of 128 + 32 + 1 tokens need 11 blocks of 16 tokens each.
    fakes.facts = {"parameter_bytes": 77, "kv_blocks": 44, "kv_block_tokens": 16, "gpu": {"sm_clock_mhz": 1500}}
    with TimingSession(logs=tmp_path, open_worker=fakes.open) as session:
        base, small = session.time(*pair)
    assert base.parameter_bytes == small.parameter_bytes == 77 and base.kv_tokens == small.kv_tokens == 704
    assert small.protocol["gpu"] == {"sm_clock_mhz": 1500} and small.protocol["gpu_after"] == {"sm_clock_mhz": 1400}
    fakes.facts["kv_blocks"] = 43
    with TimingSession(logs=tmp_path, open_worker=fakes.open) as session:
        base, small = session.time(*pair)
    assert base.reason is not None and "holds 688 tokens, but 4 sequences of 161 need 704" in base.reason
    assert small.reason is not None and small.prefill is None


def test_rounds_are_summed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fakes = Fakes()
    with TimingSession(TimingProtocol(rounds=3), logs=tmp_path, open_worker=fakes.open) as session:
        base, _ = session.time(*pair)
    assert len(fakes.prompts["base"]) == 1 + 5 * 3
    assert base.prefill is not None and base.prefill.median == 4 * 128 / 1.0
    assert base.batches[0].seconds["prefill"] == (3.0,) * 5


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
    "config", [{"per_layer_config": {"0": {"num_local_experts": 3}}}, {"architectures": ["MoebenchNobodysForCausalLM"]}]
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
    with pytest.raises(ConfigError, match=r"repeats: should be at least 5, found 4"):
        validated({"repeats": 4}, TimingProtocol, "options")
    for batch in (0, (), (4, 0), (4, 4)):
        with pytest.raises(ConfigError, match="batch sizes are at least 1, each given once"):
            validated({"batch": batch}, TimingProtocol, "options")
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


def test_the_table_says_no_difference_and_shows_marks(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fakes = Fakes()
    fakes.seconds["small"] = [1.0, 1.3, 0.8, 1.0, 1.2, 0.9]
    with TimingSession(TimingProtocol(batch=(2, 3), extra=0), logs=tmp_path, open_worker=fakes.open) as session:
        base, small = session.time(*pair)
    rows = [("base", base), ("small", small), ("other", Timing(reason="no room"))]
    console = Console(width=300, file=io.StringIO())
    console.print(offline_table(rows))
    console.print(memory_table(rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO above
    lines = [line for line in text.splitlines() if "small" in line]
    assert all(line.count("no difference") == 2 and "noisy" in line for line in lines[:2]) and "no room" in text
    write_timings(rows, tmp_path / "out" / "timings.json")
    written = json.loads((tmp_path / "out" / "timings.json").read_text())
    assert [one["checkpoint"] for one in written] == ["base", "small", "other"]
    assert written[1]["batches"][1]["batch"] == 3 and len(written[1]["batches"][1]["seconds"]["decode"]) == 5


def test_a_record_written_before_batches_still_reads() -> None:
    old = {"prefill": {"median": 2.0, "low": 1.0, "high": 3.0, "n": 5}, "weights_bytes": 3, "protocol": {"noisy": True}}
    timing = Timing.model_validate(old)
    assert timing.batches == () and timing.online == () and timing.marks == () and timing.kv_tokens is None
