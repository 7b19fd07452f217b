"""moebench as a library: the names that ``bench`` and ``methods`` offer, and what they do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bench
import methods
from bench import calibrate, compress, evaluate, load_model, open_checkpoint
from bench.settings.stage_settings import CalibrationConfig
from methods.criterion import REAP
from methods.framework.cost import cost_of
from methods.framework.errors import CheckpointError, ConfigError
from methods.framework.plan import Plan
from tests.support.command_line import moebench

SMALL = {"sequences": 4, "length": 32}


@pytest.mark.parametrize("package", [bench, methods])
def test_offered_names_are_sorted_and_are_what_they_are_called(package: object) -> None:
    offered = package.__all__  # type: ignore[attr-defined]  # made by lazy_names
    assert offered == sorted(offered) and set(offered) <= set(dir(package))
    for name in offered:
        assert getattr(package, name) is package.__getattr__(name)  # type: ignore[attr-defined]  # made by lazy_names
    with pytest.raises(AttributeError, match=r"has no attribute 'no_such_name'"):
        package.no_such_name  # type: ignore[attr-defined]  # noqa: B018  # the access is the test


@pytest.mark.parametrize("package", ["analysis", "bench", "methods", "sweeps"])
def test_types_are_offered(package: str) -> None:
    assert (Path(__file__).parents[2] / package / "py.typed").exists()


def test_the_old_address_of_load_model() -> None:
    from bench.load import load_model as there

    assert there is load_model


def test_compress_writes_what_it_reports(tmp_path: Path) -> None:
    result = compress("pocket-mixtral", "reap", keep=0.5, out=tmp_path / "half", calibration=SMALL, store=tmp_path)
    written = open_checkpoint(result.folder)
    assert written.inventory.num_experts == 24 and result.folder == tmp_path / "half"
    assert cost_of(written.inventory) == result.cost
    assert result.source_cost == cost_of(open_checkpoint("pocket-mixtral").inventory)
    model = load_model(result.folder)
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_every_way_to_say_it_gives_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_checkpoint("pocket-mixtral")
    settings = CalibrationConfig(**SMALL)
    first = compress(source, "reap", keep=0.75, calibration=settings, store=tmp_path)
    for method, more in (("reap:keep=0.75", {}), (REAP(keep=0.75), {}), (REAP(), {"keep": 0.75})):
        again = compress(source, method, calibration=SMALL, store=tmp_path, **more)  # type: ignore[arg-type]  # a knob
        assert again.plan == first.plan and again.folder == first.folder
    plan, out = tmp_path / "plan.json", tmp_path / "by_verbs"
    options = ("--sequences", 4, "--length", 32, "--store", tmp_path)
    status, told = moebench(capsys, "plan", "pocket-mixtral", "reap", "--set", "keep=0.75", "--out", plan, *options)
    assert status == 0, told
    assert Plan.loads(plan.read_bytes()) == first.plan
    assert moebench(capsys, "apply", "pocket-mixtral", plan, out, *options)[0] == 0
    assert (out / "model.safetensors").read_bytes() == (first.folder / "model.safetensors").read_bytes()
    assert "experts" in moebench(capsys, "cost", "pocket-mixtral", plan)[1]


def test_calibrate_measures_what_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = calibrate("pocket-mixtral", "pocket:facts", ["router_probability"], store=tmp_path, **SMALL)
    assert set(stats.values) == {"router_probability"} and stats.tokens == 4 * 32
    assert stats.layer("router_probability", 0).sum() == pytest.approx(128.0, rel=1e-5)  # a share of each token for all
    status, told = moebench(
        capsys, "calibrate", "pocket-mixtral", "--needs", "router_probability", "--corpus", "pocket:facts",
        "--sequences", 4, "--length", 32, "--store", tmp_path,
    )  # fmt: skip
    assert status == 0 and "router_probability: measured on 128 tokens of pocket:facts" in told
    assert len(list((tmp_path / "cache" / "stats").glob("*.safetensors"))) == 1  # the verb found what the call measured


def test_evaluate_scores_by_name(tmp_path: Path) -> None:
    scores = evaluate("pocket-mixtral", "pocket", limit=2, store=tmp_path)
    assert {score.n for score in scores} == {2} and len({score.task for score in scores}) == 11


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'reap'"):
        compress("pocket-mixtral", "raep", store=tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'keep'"):
        compress("pocket-mixtral", "reap", kep=0.5, store=tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'sequences'"):
        calibrate("pocket-mixtral", "pocket", ["weight_norm"], sequence=3, store=tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'limit'"):
        evaluate("pocket-mixtral", "pocket", limits=2, store=tmp_path)
    with pytest.raises(CheckpointError, match="no folder"):
        open_checkpoint(tmp_path / "nothing")
