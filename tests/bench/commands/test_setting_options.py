"""Options from settings: each has the description, type and default of its field, and only what was given reaches the verb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import bench.commands.live
import bench.library.measuring
import bench.library.opening
from bench.cli import VERBS
from bench.commands.run_command import merged
from bench.settings.run_settings import RunConfig
from bench.settings.stage_settings import CalibrationConfig, EvaluationConfig
from methods.framework.errors import ConfigError
from tests.support.command_line import moebench


def started(patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> RunConfig:
    """Return the settings with which ``moebench run ARGUMENTS`` starts its job."""
    seen: list[RunConfig] = []
    patch.setattr(bench.commands.live, "run_with_table", lambda configs, store, track: seen.extend(configs))
    status, told = moebench(capsys, "run", *arguments)
    assert status == 0, told
    return seen[0]


def test_options_win_over_the_file_and_the_rest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document: dict[str, Any] = {
        "model": "of-the-file",
        "group": "file",
        "calibration": {"corpus": "file.txt", "sequences": 7},
        "evaluation": {"tasks": ["piqa"], "limit": 3, "dtype": "bfloat16"},
        "timing": {"repeats": 9},
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(document))
    given = [
        "--model",
        "given",
        "--corpus",
        "pocket",
        "--tasks",
        "boolq,rte",
        "--limit",
        5,
        "--device",
        "cpu",
        "--no-time",
    ]
    config = started(monkeypatch, capsys, "--config", file, *given)
    assert (config.model, config.group) == ("given", "file")
    assert config.calibration == CalibrationConfig(corpus="pocket", sequences=7, device="cpu")
    assert config.evaluation == EvaluationConfig(tasks=("boolq", "rte"), limit=5, dtype="bfloat16", device="cpu")
    assert (config.timing.repeats, config.timing.enabled) == (9, False)


def test_a_default_that_is_given_wins_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"model": "m", "calibration": {"sequences": 7}}))
    assert started(monkeypatch, capsys, "--config", file, "--sequences", 128).calibration.sequences == 128
    assert started(monkeypatch, capsys, "--config", file).calibration.sequences == 7


@pytest.mark.parametrize("given", [["boolq,rte", "piqa"], ["boolq", "rte", "piqa"], ["boolq, rte,piqa,"]])
def test_lists_are_joined(
    given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [word for one in given for word in ("--tasks", one)]
    assert started(monkeypatch, capsys, "--model", "m", *tasks).evaluation.tasks == ("boolq", "rte", "piqa")


@pytest.mark.parametrize("option", ["--limit 3", "--limit=3", "--store runs", "--no-time", "--answers-only"])
def test_one_value_given_again_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = moebench(capsys, "run", "--model", "m", *option.split(), "--seed", 1, *option.split())
    name = "--time" if option == "--no-time" else option.split("=")[0].split()[0]
    assert status == 1 and f"{name} is given 2 times, and takes one value; give it once" in told


def test_every_option_of_every_verb_takes_several_or_refuses_them() -> None:
    """So none keeps the last value in silence; lists with commas in a text of their own would be split by none."""
    for verb in VERBS:
        command = verb.command()
        with command.make_context(verb.name, [], resilient_parsing=True) as context:
            for option in (one for one in command.params if one.param_type_name == "option" and one.name != "help"):
                word = option.opts[0]
                given = [word, word] if option.is_flag else [word, "1", word, "1"]
                if option.multiple:
                    assert len(command.make_parser(context).parse_args(args=given)[0][option.name]) == 2
                else:
                    with pytest.raises(ConfigError, match=f"{word} is given 2 times"):
                        command.make_parser(context).parse_args(args=given)
                assert option.multiple or "comma" not in (option.help or ""), f"{verb.name} {word}"


def test_statistics_are_joined_and_all_stands_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(bench.library.opening, "open_checkpoint", lambda *args, **options: None)
    monkeypatch.setattr(
        bench.library.measuring, "calibrate", lambda opened, corpus, names, **_: asked.append(names) or 1
    )
    for needs in (["a,b", "c"], ["all"], []):
        with pytest.raises(AttributeError):  # the double measures nothing
            moebench(capsys, "calibrate", "m", *(word for one in needs for word in ("--needs", one)))
    assert asked == [["a", "b", "c"], None, None]
    status, told = moebench(capsys, "calibrate", "m", "--needs", "all", "--needs", "a")
    assert status == 1 and "--needs all,a: all is the whole catalogue; name it alone" in told


def test_methods_at_every_share(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "m", "--method", "reap", "--method", "svd:keep=0.3", "--keep", 0.75, "--keep", 0.5]
    knobs = [(one.name, one.knobs["keep"]) for one in started(monkeypatch, capsys, *arguments).methods]
    assert knobs == [("reap", 0.75), ("reap", 0.5), ("svd", 0.3)]


def test_the_settings_refuse_in_their_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    status, told = moebench(capsys, "run", "--model", "m", "--propagation", "twice")
    assert status == 1
    assert "options: calibration.propagation: should be 'one_shot' or 'sequential', found 'twice'" in told


def test_help_tells_what_the_settings_say(capsys: pytest.CaptureFixture[str]) -> None:
    _, told = moebench(capsys, "run", "--help")
    lines = {line.split()[1]: line for line in told.splitlines() if line.startswith("│ --")}
    for settings, names in ((CalibrationConfig, ("sequences", "seed")), (EvaluationConfig, ("max_length", "limit"))):
        for name in names:
            line, field = lines[f"--{name.replace('_', '-')}"], settings.model_fields[name]
            assert str(field.description) in line and "<int>" in line
            assert (f"[default: {field.default}]" in line) == (field.default is not None)
    assert "<one_shot|sequential>" in lines["--propagation"]


def test_merging_goes_one_level_deep() -> None:
    assert merged({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 4}, "c": 5}) == {"a": {"x": 1, "y": 4}, "b": 3, "c": 5}
