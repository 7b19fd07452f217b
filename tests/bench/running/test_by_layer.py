"""What is written from statistics that go with their layer is what is written from those that are kept, in constant room."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import bench.calibration.streaming
from bench.calibration.calibrate import calibrate
from bench.calibration.conditions import Effort
from bench.calibration.passing import calibrate_passing
from bench.calibration.passing_stats import passing_names
from bench.checkpoint.checkpoint import Checkpoint
from bench.library.compressing import compress
from methods.framework.errors import StatsError
from methods.framework.inventory import Inventory
from methods.naee import NAEEGreedy
from tests.support.streamed_pass import RAGGED, SQUARE
from tests.support.tiny import tiny_checkpoint

CALIBRATION = {"corpus": "pocket", "sequences": 6, "length": 32, "sampled_tokens": 64}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("qwen2_moe", tmp_path_factory.mktemp("by_layer"), vocab_size=512)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def held() -> int:
    """Return the bytes of files without a name that this process holds, by descriptor or by map."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            stat = os.stat(f"/proc/self/fd/{name}")
            if os.readlink(f"/proc/self/fd/{name}").startswith("/") and not stat.st_nlink:
                found[stat.st_ino] = stat.st_size
        except OSError:
            continue
    return sum(found.values())


@pytest.mark.parametrize(
    ("method", "knobs"),
    [
        ("gptq", {"scope": "all"}),
        ("awq", {"scope": "all"}),
        ("sparsegpt", {}),
        ("whitened_svd", {"ranks": "spectrum"}),
        ("d2_moe", {}),
        ("naee_greedy", {}),
    ],
)
def test_the_same_bytes_are_written_and_found_again(
    source: Path, tmp_path: Path, method: str, knobs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {
        way: compress(source, method, calibration={**CALIBRATION, "moments": way}, store=tmp_path / way, **knobs)
        for way in ("kept", "by_layer")
    }
    assert files_of(made["kept"].folder) == files_of(made["by_layer"].folder)
    big = list((tmp_path / "by_layer" / "cache" / "stats").glob("*.npy"))
    assert [path for path in big if "entry_fisher" not in path.name] == []
    assert (method == "d2_moe") == bool(big)
    if method == "naee_greedy":
        return
    monkeypatch.setattr(bench.calibration.streaming.StreamedPass, "layers", None)  # measuring again would fail
    again = compress(
        source, method, calibration={**CALIBRATION, "moments": "by_layer"}, store=tmp_path / "by_layer", **knobs
    )
    assert again.folder == made["by_layer"].folder


def test_a_named_folder_is_compared_by_measuring_again(source: Path, tmp_path: Path) -> None:
    by_layer = {**CALIBRATION, "moments": "by_layer"}
    first = compress(source, "sparsegpt", out=tmp_path / "out", calibration=by_layer, store=tmp_path / "store")
    before = files_of(first.folder)
    compress(source, "sparsegpt", out=tmp_path / "out", calibration=by_layer, store=tmp_path / "store")
    assert files_of(first.folder) == before


def test_files_of_one_layer_are_held_at_a_time(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(source)
    peaks = []
    step = bench.calibration.streaming.StreamedPass._step

    def watched(*arguments: Any, **settings: Any) -> Any:
        outcome = step(*arguments, **settings)
        peaks.append(held())
        return outcome

    monkeypatch.setattr(bench.calibration.streaming.StreamedPass, "_step", watched)
    stats = calibrate_passing(checkpoint, RAGGED, {"input_gram", "channel_gram"}, cache=tmp_path)
    inventory: Inventory = checkpoint.inventory
    before, one = held(), 0
    for layer in inventory.moe_layers:
        grams = [stats.layer(name, layer) for name in ("input_gram", "channel_gram")]
        one = max(one, sum(gram.nbytes for gram in grams))
        assert held() - before <= 1.2 * one
        del grams
    stats.layers.finish()
    assert len(peaks) >= len(inventory.layers) and one and held() == before
    assert max(peaks) - before <= 1.2 * one
    with pytest.raises(StatsError, match="layer 0 are gone"):
        stats.layer("input_gram", 0)


def test_small_statistics_stay_and_a_method_may_read_ahead(source: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(source)
    needs = NAEEGreedy().needs
    assert passing_names(needs) == {"token_logits", "token_gram"}
    stats = calibrate_passing(checkpoint, RAGGED, needs, cache=tmp_path, sampled_tokens=16)
    last = checkpoint.inventory.moe_layers[-1]
    stats.layer("token_gram", last)
    for layer in checkpoint.inventory.moe_layers:
        assert stats.layer("router_correction", layer).shape == (checkpoint.inventory.layers[layer].experts,)
    assert stats.only(needs) is stats


def test_the_identity_of_a_pass_tells_corpus_and_names(source: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(source)
    texts = [(RAGGED, {"input_gram"}), (SQUARE, {"input_gram"}), (RAGGED, {"channel_gram"})]
    found = [calibrate_passing(checkpoint, text, needs, cache=tmp_path).identity for text, needs in texts]
    assert len(set(found)) == 3
    assert calibrate_passing(checkpoint, RAGGED, {"input_gram"}, cache=tmp_path).identity == found[0]


def test_states_in_bfloat16_are_other_statistics_nearby(source: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(source)
    made = [
        calibrate(checkpoint, RAGGED, {"input_square"}, cache=tmp_path, effort=Effort(rounded_states=rounded))
        for rounded in (False, True, False)
    ]
    exact, rounded, again = (stats.layer("input_square", 2) for stats in made)
    assert (exact == again).all() and (exact != rounded).any()
    assert abs(exact - rounded).max() < 0.1 * exact.max()
