"""The mirror: what it holds, that it does not double, and that losing it costs a warning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.records.mirror import Tracker, TrackingWarning
from bench.records.record import CostInfo, Environment, Interval, ModelInfo, Paired, RatioInfo, Record, Score, Timing
from bench.records.run_contents import configuration, score_rows, summary
from methods.framework.errors import ConfigError

PLAN = '{"family":"mixtral","layers":[{"drop":"block"},{}],"schema":1}'


def record(identifier: str = "00000000000000aa", **changes: Any) -> Record:
    paired = Paired(difference=-0.1, low=-0.2, high=0.0, p=0.3, test="mcnemar")
    one = Score(
        task="arc_easy",
        metric="acc",
        value=0.5,
        stderr=0.1,
        n=10,
        higher_is_better=True,
        version="1",
        digest="d",
        paired=paired,
    )
    generated = one.model_copy(update={"task": "gsm", "filter": "strict", "stderr": None, "paired": None})
    fields: dict[str, Any] = {
        "id": identifier,
        "group": "demo",
        "status": "complete",
        "created": "2026-01-01T00:00:00Z",
        "model": ModelInfo(name="pocket", family="mixtral", content="c"),
        "method": "reap",
        "title": "REAP",
        "knobs": {"keep": [0.25, 0.75]},
        "plan": "ab" * 32,
        "cost": CostInfo(
            experts=4, channels=8, routed_parameters=16, parameters=32, active_parameters=20, bytes=64, flops=128
        ),
        "ratios": RatioInfo(count=0.5, expert=0.5, total=0.25, bytes=0.25, channels=0.5),
        "scores": (one, generated),
        "timing": Timing(
            decode=Interval(median=10.0, low=9.0, high=11.0, n=5), weights_bytes=64, protocol={"batch": 1}
        ),
        "seconds": {"plan": 0.125},
        "seeds": {"calibration": 3},
        "environment": Environment(commit=None, dirty=None, versions={"torch": "2"}, device="cpu", threads=1),
    }
    return Record(**{**fields, **changes})


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No W&B key, mode or home folder."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("environment", "netrc", "mode"),
    [
        ({}, "", "offline"),
        ({"WANDB_API_KEY": "x"}, "", "online"),
        ({}, "machine api.wandb.ai login user password x", "online"),
        ({}, "machine example.org login user password x", "offline"),
        ({"WANDB_BASE_URL": "https://example.org"}, "machine example.org login user password x", "online"),
        ({"WANDB_API_KEY": "x", "WANDB_MODE": "disabled"}, "", "disabled"),
    ],
)
def test_the_default_is_online_only_with_a_key(
    no_key: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], netrc: str, mode: str
) -> None:
    (no_key / "netrc").write_text(netrc)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Tracker(folder=no_key).mode == mode
    assert Tracker("disabled", folder=no_key).mode == "disabled"


def test_the_summary_has_every_number_by_name() -> None:
    numbers = summary(record())
    assert numbers["score/arc_easy/acc"] == 0.5
    assert numbers["score/arc_easy/acc_stderr"] == 0.1
    assert numbers["score/arc_easy/acc_difference"] == -0.1
    assert numbers["score/gsm/acc/strict"] == 0.5
    assert numbers["ratio/total"] == 0.25 and numbers["cost/bytes"] == 64
    assert numbers["timing/decode/median"] == 10.0 and numbers["seconds/plan"] == 0.125
    assert None not in numbers.values() and "score/gsm/acc/strict_stderr" not in numbers
    assert summary(
        record(status="refused", reason="why", scores=(), cost=None, ratios=None, timing=None, seconds={})
    ) == {
        "status": "refused",
        "reason": "why",
    }


def test_the_configuration_tells_what_determined_the_run() -> None:
    told = configuration(record())
    assert told["knobs"] == {"keep": [0.25, 0.75]} and told["seeds"] == {"calibration": 3}
    assert told["environment"]["versions"] == {"torch": "2"} and told["model"]["content"] == "c"
    assert "scores" not in told


def test_rows_of_the_table() -> None:
    first, second = score_rows(record())
    assert first[:7] == ["arc_easy", "acc", "none", 0.5, 0.1, 10, True] and first[8:] == [
        -0.1,
        -0.2,
        0.0,
        0.3,
        "mcnemar",
    ]
    assert second[:5] == ["gsm", "acc", "strict", 0.5, None] and second[8:] == [None] * 5


class Broken:
    """Stands for the module wandb and fails as it may."""

    Settings = staticmethod(lambda **_: None)

    def __init__(self, modes: set[str]) -> None:
        self.modes, self.asked = modes, []

    def init(self, mode: str, **_: Any) -> None:
        self.asked.append(mode)
        if mode in self.modes:
            raise OSError("no network\nlong story")

    def teardown(self) -> None: ...


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    fake = Broken({"online", "offline"})
    monkeypatch.setitem(sys.modules, "wandb", fake)
    yield fake


def test_failure_is_one_warning_with_the_remedy(no_key: Path, broken: Broken) -> None:
    before = dict(os.environ)
    with pytest.warns(TrackingWarning, match=r"OSError: no network\). The record itself is complete") as caught:
        assert Tracker("offline", folder=no_key).track(record()) is None
    assert len(caught) == 1 and "long story" not in str(caught[0].message)
    assert dict(os.environ) == before


def test_after_a_failure_online_the_rest_goes_offline(
    no_key: Path, broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="there is no key; log in"):
        Tracker("online", folder=no_key)
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ConfigError, match="there is no key; log in"):
        Tracker(folder=no_key)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    tracker = Tracker("online", folder=no_key)
    monkeypatch.setattr(
        Tracker,
        "_run",
        lambda self, *_: broken.init(self.mode) or no_key / "run" if self.mode == "online" else no_key / "run",
    )
    with pytest.warns(TrackingWarning, match="wandb sync") as caught:
        assert tracker.track(record()) == no_key / "run"
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tracker.track(record("00000000000000bb")) == no_key / "run"
    assert broken.asked == ["online"]


def test_an_unwritable_folder_is_one_warning(no_key: Path) -> None:
    (no_key / "file").write_text("")
    with pytest.warns(TrackingWarning, match="The record itself is complete") as caught:
        assert Tracker("offline", folder=no_key / "file").track(record()) is None
    assert len(caught) == 1


def test_disabled_does_nothing(no_key: Path, broken: Broken) -> None:
    assert Tracker("disabled", folder=no_key / "w").track(record()) is None
    assert not (no_key / "w").exists() and broken.asked == []


def chunks(content: bytes) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format after W&B's seven bytes of header: blocks of 32 KiB, records in parts."""
    position, record = 7, b""
    while position < len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def entries(folder: Path) -> list[Any]:
    """Return the protocol buffers of an offline run."""
    from wandb.proto import wandb_internal_pb2

    content = next(folder.glob("*.wandb")).read_bytes()
    assert content.startswith(b":W&B")
    return [wandb_internal_pb2.Record.FromString(chunk) for chunk in chunks(content)]


SCRIPT = """
import sys, warnings
from pathlib import Path
from bench.records.mirror import Tracker, TrackingWarning
from methods.framework.errors import ConfigError
from tests.bench.records.test_mirror import PLAN, record
warnings.simplefilter("error", TrackingWarning)
with Tracker("offline", folder=Path(sys.argv[1]), project="p") as tracker:
    for identifier in sys.argv[2:]:
        print(tracker.track(record(identifier), PLAN))
"""


@pytest.mark.e2e
def test_an_offline_run_holds_everything_and_is_not_doubled(no_key: Path) -> None:
    import socket

    identifiers = ["00000000000000aa", "00000000000000bb"]
    command = [sys.executable, "-c", SCRIPT, str(no_key / "store"), *identifiers]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    folders = [Path(line) for line in first.stdout.splitlines()]
    assert first.stderr == "" and len(folders) == 2, "W&B is silent"
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout.splitlines() == ["None", "None"]
    assert sorted((no_key / "store" / "wandb").glob("offline-run-*")) == sorted(folders)

    found = entries(folders[0])
    run = next(entry.run for entry in found if entry.HasField("run"))
    assert (run.run_id, run.project, run.run_group) == ("00000000000000aa", "p", "demo")
    told = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert told["knobs"] == {"keep": [0.25, 0.75]} and told["method"] == "reap"
    numbers: dict[str, Any] = {}
    for entry in found:
        if entry.HasField("summary"):
            numbers |= {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in entry.summary.update
            }
    assert numbers["score/arc_easy/acc"] == 0.5 and numbers["cost/bytes"] == 64
    artifacts = {entry.request.log_artifact.artifact.type for entry in found if entry.request.HasField("log_artifact")}
    artifacts |= {entry.artifact.type for entry in found if entry.HasField("artifact")}
    assert artifacts >= {"model", "plan", "checkpoint", "record"}
    assert (folders[0] / "files" / "plan.json").read_text() == PLAN
    assert Record.model_validate_json((folders[0] / "files" / "record.json").read_text()) == record()

    everything = b"".join(entry.SerializeToString() for entry in found)
    for secret in (socket.gethostname(), "requirements", sys.executable):
        assert len(secret) < 4 or secret.encode() not in everything, f"{secret!r} is not in the record"
    uploaded = {path.name for path in (folders[0] / "files").rglob("*") if path.is_file()}
    told_of = {"plan.json", "record.json", "model.json", "checkpoint.json"}
    assert uploaded - told_of == {name for name in uploaded if name.endswith(".table.json")}
    assert not (no_key / "home" / ".local" / "share" / "wandb").exists(), "what is synced later lies in the store"


@pytest.mark.e2e
def test_sync_reads_the_folder(no_key: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(no_key), "00000000000000aa"]
    folder = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    sync = [sys.executable, "-m", "wandb", "sync", "--dry-run", "--verbose", str(folder)]
    told = subprocess.run(sync, capture_output=True, text=True, timeout=120)
    assert "00000000000000aa" in told.stdout + told.stderr, told.stdout + told.stderr
