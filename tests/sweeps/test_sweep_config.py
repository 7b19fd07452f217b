"""The file of a sweep: what is accepted, and how the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from methods.framework.errors import ConfigError
from sweeps.space.dimension import Choice, Knots
from sweeps.sweep_config import load_sweep, parse_sweep
from sweeps.task_guard import check_objectives
from sweeps.workers import write_config
from tests.support.places import ROOT

PRESETS = ROOT / "sweeps" / "presets"


def settings(**changes: Any) -> dict[str, Any]:
    """Return a small valid sweep with changes."""
    base: dict[str, Any] = {
        "name": "s",
        "model": "m",
        "method": "criterion",
        "space": {"b": "auto", "keep": {"knots": 2, "low": 0.3, "high": 0.9}},
        "objectives": [{"kind": "nll", "windows": {"corpus": "held.txt"}}],
    }
    return {**base, **changes}


def task(name: str, **changes: Any) -> dict[str, Any]:
    return settings(objectives=[{"kind": "task", "task": name}], **changes)


def test_auto_takes_the_methods_own_dimension() -> None:
    config = parse_sweep(settings())
    assert config.space["b"] == Choice(choices=(0, 1))
    assert config.space["keep"] == Knots(knots=2, low=0.3, high=0.9)


def test_without_a_space_every_knob_that_is_not_fixed_is_searched() -> None:
    config = parse_sweep(settings(space={}, fixed={"b": 1, "keep": 0.5}))
    assert set(config.space) == {"alpha", "beta"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trails": 3}, "unknown key 'trails'; did you mean 'trials'"),
        ({"budget": {"of": "experts", "keeep": 0.5}}, "budget: unknown key 'keeep'; did you mean 'keep'"),
        ({"budget": {"of": "weight", "keep": 0.5}}, "budget.of"),
        ({"method": "criteron"}, "unknown method 'criteron'; did you mean 'criterion'"),
        ({"space": {"gamma": {"choices": [1]}}}, "unknown knob of method criterion 'gamma'"),
        ({"space": {"b": {"choices": [0, 7]}}}, "method criterion, b"),
        ({"space": {"keep": {"knots": 2, "low": 0.5, "high": 1.2}}}, "space.keep.high"),
        ({"space": {"b": "auto"}, "fixed": {"b": 1}}, "either fixed or in the space"),
        ({"fixed": {"alpha": 9}}, "method criterion, alpha"),
        (
            {"sampler": {"name": "cmaes"}, "objectives": [{"kind": "kl"}, {"kind": "size", "of": "bytes"}]},
            "single objective",
        ),
        ({"sampler": {"name": "grid"}}, "sampler.name"),
        ({"calibration": {"propagation": "sequential"}}, "one_shot"),
        ({"objectives": []}, "objectives"),
        ({"objectives": [{"kind": "speed"}]}, "objectives.0"),
        ({"name": "../up"}, "name"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match="sweep") as error:
        parse_sweep(settings(**changes))
    assert message in str(error.value)


def test_layer_methods_take_no_knots() -> None:
    with pytest.raises(ConfigError, match="method layer_drop, keep"):
        parse_sweep(settings(method="layer_drop", space={"keep": {"knots": 2, "low": 0.5, "high": 0.9}}))


def test_yaml_toml_and_json_read_alike(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "name: s\nmodel: m\nmethod: criterion\nspace: {b: auto, keep: {knots: 2, low: 0.3, high: 0.9}}\n"
        "objectives: [{kind: nll, windows: {corpus: held.txt}}]\n"
    )
    (tmp_path / "a.toml").write_text(
        'name = "s"\nmodel = "m"\nmethod = "criterion"\n[space]\nb = "auto"\n'
        "keep = {knots = 2, low = 0.3, high = 0.9}\n"
        '[[objectives]]\nkind = "nll"\nwindows = {corpus = "held.txt"}\n'
    )
    config = load_sweep(tmp_path / "a.yaml")
    assert config == load_sweep(tmp_path / "a.toml") == parse_sweep(settings())
    assert load_sweep(write_config(config, tmp_path)) == config


def test_a_key_written_twice_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: s\ntrials: 3\ntrials: 5\n")
    with pytest.raises(ConfigError, match="trials is written twice"):
        load_sweep(tmp_path / "a.yaml")


@pytest.mark.parametrize("content", ["name: [", "- 1\n- 2\n"])
def test_a_file_that_is_no_sweep_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        load_sweep(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        load_sweep(tmp_path / "absent.yaml")


def test_the_model_is_looked_for_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "a.yaml").write_text(
        "name: s\nmodel: m\nmethod: criterion\nobjectives: [{kind: nll, windows: {corpus: held.txt}}]\n"
    )
    assert load_sweep(tmp_path / "a.yaml").model == str(tmp_path / "m")


def test_benchmark_tasks_are_refused_as_objectives(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine_dev\ndoc_to_text: !function a.b\n")
    check_objectives(parse_sweep(task("mine_dev", include_path=str(tmp_path))))
    with pytest.raises(ConfigError, match="allow_test_objective: true"):
        check_objectives(parse_sweep(task("arc_easy", include_path=str(tmp_path))))
    with pytest.raises(ConfigError, match="in `report`"):
        check_objectives(parse_sweep(task("mine_dev", include_path=str(tmp_path), report=["mine_dev"])))
    check_objectives(parse_sweep(task("arc_easy", allow_test_objective=True)))


def test_losses_are_not_measured_on_the_calibration_windows() -> None:
    windows = {"corpus": "a.txt", "seed": 3}
    config = parse_sweep(
        settings(calibration={"corpus": "a.txt", "seed": 3}, objectives=[{"kind": "nll", "windows": windows}])
    )
    with pytest.raises(ConfigError, match="another seed or corpus"):
        check_objectives(config)


def test_labels_are_distinct() -> None:
    nll = {"kind": "nll", "windows": {"corpus": "a"}}
    config = parse_sweep(settings(objectives=[nll, nll, {"kind": "size", "of": "bytes"}]))
    assert config.labels == ("nll", "nll_1", "bytes_kept")


def test_identity_leaves_out_extent_and_machine() -> None:
    config = parse_sweep(settings())
    assert config.identity() == parse_sweep(settings(trials=7, jobs=3, batch_size=2)).identity()
    assert config.identity() != parse_sweep(settings(sampler={"seed": 1})).identity()


def test_the_presets_are_valid() -> None:
    for path in sorted(PRESETS.glob("*.yaml")):
        check_objectives(load_sweep(path))
