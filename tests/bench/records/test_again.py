"""The command that makes a record again says the same as the record, read by the command line itself."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from bench.commands import live
from bench.records.again import command, open_ends
from bench.records.record import CorpusInfo, EvaluationInfo, Record
from bench.records.usual import default_knobs
from bench.settings.named_values import read_values
from bench.settings.run_settings import RunConfig
from tests.support.command_line import moebench
from tests.support.records import record, recovered


def _asked(made: Record, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    taken: list[RunConfig] = []
    monkeypatch.setattr(live, "run_with_table", lambda configs, *rest, **more: taken.extend(configs))
    words = shlex.split(command(made, default_knobs(made.method)))
    assert words[:2] == ["moebench", "run"]
    status, told = moebench(capsys, *words[1:])
    assert status == 0, told
    (config,) = taken
    return config


KNOBS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("reap", {"keep": 0.25}),
    ("random", {"keep": 0.5, "seed": 7}),
    ("expert_drop", {"keep": 0.75, "scope": "global"}),
    ("layer_drop", {"keep": 0.5}),
)


@pytest.mark.parametrize("name, knobs", KNOBS, ids=[name for name, _ in KNOBS])
def test_method_knobs_and_calibration_come_back(
    name: str, knobs: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = dict(default_knobs(name)) | knobs
    text = CorpusInfo(name="pocket", digest="d", tokens=640, sequences=5, propagation="sequential")
    made = record(name, knobs=every, corpus=text, seeds={"calibration": 3}, group="own", timing=None)
    config = _asked(made, capsys, monkeypatch)
    (method,) = config.methods
    assert method.name == name and dict(method.configured().knobs) == every
    calibration = config.calibration
    assert (calibration.sequences, calibration.length, calibration.seed) == (5, 128, 3)
    assert calibration.propagation == "sequential" and str(calibration.corpus) == "pocket"
    assert config.model == made.model.name and config.group == "own" and not config.timing.enabled
    assert set(config.evaluation.tasks) == {one.task for one in made.scores}


def test_what_is_as_it_comes_is_left_out_and_what_is_not_recorded_is_said() -> None:
    assert "scope" not in command(
        record("expert_drop", knobs=dict(default_knobs("expert_drop"))), default_knobs("expert_drop")
    )
    assert "--no-time" not in command(record("reap"))
    recipe = record("recipe", knobs={"a.keep": 0.5})
    assert "--method" not in command(recipe) and any("--recipe" in one for one in open_ends(recipe))
    assert command(record("plan", plan="abc")).count("--plan plans/abc.json") == 1
    trained = recovered(record("reap"))
    assert "--recovery lora" in command(trained) and "settings of the training" in open_ends(trained)
    assert "recovery.rate" not in command(trained)
    assert open_ends(record(None, scores=())) == ()


def test_how_tasks_were_asked_comes_back(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = EvaluationInfo(
        dtype="bfloat16",
        limit=20,
        num_fewshot=2,
        chat_template="digest",
        system_instruction="be brief",
        fewshot_as_multiturn=True,
        template_arguments={"enable_thinking": True, "effort": "high"},
        generation={"do_sample": True, "temperature": 0.6},
        stop=("END",),
        think_end_token="</think>",
    )
    made = record("reap", knobs=dict(default_knobs("reap")), evaluation=asked)
    found = _asked(made, capsys, monkeypatch).evaluation
    assert (found.dtype, found.limit, found.num_fewshot, found.max_length) == ("bfloat16", 20, 2, None)
    assert found.apply_chat_template and found.fewshot_as_multiturn and found.system_instruction == "be brief"
    assert read_values(found.template_arguments) == asked.template_arguments
    assert read_values(found.generation) == asked.generation
    assert found.stop == ("END",) and found.think_end_token == "</think>"
    assert open_ends(made) == () and len(open_ends(record("reap"))) == 1
