"""An engine costs one file, in the folder or in another distribution; one that cannot do anything says why everywhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import bench.serving.engines
from bench.commands.time_command import time_models
from bench.records.mirror import Tracker
from bench.records.record import Record
from bench.running.run import Run
from bench.serving.engine import Engine, engine_here, engine_named, engine_names
from bench.settings.method_settings import MethodConfig
from bench.settings.run_settings import RunConfig
from bench.settings.stage_settings import CalibrationConfig
from bench.settings.strict import validated
from bench.settings.timing_settings import OnlineProtocol, TimingConfig
from bench.store.store import Store
from methods.framework.errors import ConfigError, TimingError, UnknownNameError
from tests.support.distribution import announce

BUILT_IN = ["transformers", "vllm-cpu", "vllm-gpu"]
CANNOT = "stone computes nothing before it is rolled"
STONE = f"""
from bench.serving.engine import Engine


class Stone(Engine):
    name = "stone"
    cannot = "{CANNOT}"


ENGINE = Stone()
"""


def _distribution(folder: Path, target: str) -> Path:
    """Write what an installed distribution leaves: a module, and an entry point that names ``target`` in it."""
    (folder / "stone_engine.py").write_text(STONE)
    return announce(folder, "moebench.engines", "stone", f"stone_engine:{target}")


@pytest.fixture(params=["distribution", "file"])
def stone(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add an engine from outside, by either way."""
    (folder := tmp_path / "outside").mkdir()
    if request.param == "distribution":
        monkeypatch.syspath_prepend(_distribution(folder, "ENGINE"))
        monkeypatch.delitem(sys.modules, "stone_engine", raising=False)
    else:
        (folder / "stone.py").write_text(STONE)
        monkeypatch.setattr(bench.serving.engines, "__path__", [*bench.serving.engines.__path__, str(folder)])
        monkeypatch.delitem(sys.modules, "bench.serving.engines.stone", raising=False)


def _run(store: Path, **settings: object) -> list[Record]:
    config = validated(
        {
            "model": "pocket-mixtral",
            "methods": (MethodConfig(name="weight_norm", knobs={"keep": 0.5}),),
            "calibration": CalibrationConfig(sequences=2, length=16),
            **settings,
        },
        RunConfig,
        "options",
    )
    with Tracker("disabled", folder=store) as tracker:
        return Run(config, Store(store), tracker).execute()


@pytest.mark.usefixtures("stone")
def test_an_engine_from_outside_is_found_and_its_reason_is_told_everywhere(tmp_path: Path) -> None:
    assert sorted(engine_names()) == ["stone", *BUILT_IN]
    stone = engine_named("stone")
    assert stone.missing() == stone.refuses(tmp_path) == CANNOT
    for start in (
        lambda: stone.server_command(tmp_path, []),
        lambda: stone.server_arguments(OnlineProtocol(rates=(1,)), 1),
    ):
        with pytest.raises(TimingError, match=f"stone has no server: {CANNOT}"):
            start()
    untimed = TimingConfig(enabled=False)
    base, refused = _run(tmp_path / "store", target="stone", timing=untimed)
    assert (base.status, refused.status) == ("complete", "refused")
    assert refused.reason == f"stone cannot run this plan: {CANNOT}" and not list(
        (tmp_path / "store").glob("checkpoints/*")
    )
    assert refused.target is not None and (refused.target.outcome, refused.target.reason) == ("refused", CANNOT)
    base, timed = _run(tmp_path / "store", timing=TimingConfig(engine="stone"))
    assert timed.status == "complete" and timed.timing is not None and timed.timing.reason == CANNOT
    assert base.timing is not None and base.timing.reason == CANNOT
    for online in (False, True):
        rows = time_models(
            "pocket-mixtral",
            ["pocket-mixtral"],
            {"engine": "stone"},
            batches=(),
            rates=(1.0,) if online else (),
            requests=None,
            online=online,
            report=lambda text: None,
        )
        assert [timing.reason for _, timing in rows] == [CANNOT, CANNOT]


def test_a_name_that_no_engine_has_is_an_error_before_any_work(tmp_path: Path) -> None:
    assert engine_names() == BUILT_IN
    for settings in ({"target": "vllm-gp"}, {"timing": {"engine": "vllm-gp"}}):
        with pytest.raises(UnknownNameError, match=r"unknown engine 'vllm-gp'.*did you mean 'vllm-gpu'"):
            _run(tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_what_is_no_engine_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(_distribution(tmp_path, "Stone"))
    monkeypatch.delitem(sys.modules, "stone_engine", raising=False)
    with pytest.raises(ConfigError, match=r"'stone'.*not a bench\.serving\.engine\.Engine"):
        engine_named("stone")


def test_every_engine_answers_to_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(isinstance(engine_named(name), Engine) and engine_named(name).name == name for name in BUILT_IN)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert engine_here().name == "vllm-gpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert engine_here().name == "vllm-cpu"
    transformers = engine_named("transformers")
    assert transformers.missing() is not None and "vLLM" in transformers.cannot
