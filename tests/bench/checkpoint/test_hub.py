"""Hub models over HTTP, from a stand-in on this machine: revisions, ranges of bytes, what is fetched when, and what resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from bench.checkpoint.checkpoint import INDEX, SINGLE, Checkpoint
from bench.checkpoint.hub import HubModel
from bench.checkpoint.source import at_revision, found_source, local_folder
from bench.models.load import load_model
from methods.framework.errors import CheckpointError, NotMoEError
from tests.support.hub_server import StandInHub, stand_in_hub
from tests.support.tiny import tiny_checkpoint

FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """Give huggingface_hub another address, an empty cache, and us empty memos."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "memos"))
    with stand_in_hub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = f"{served.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield served
        huggingface_hub.close_session()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in two shards, with files beside it that nobody needs."""
    folder = tiny_checkpoint("mixtral", tmp_path_factory.mktemp("sharded") / "model")
    tensors = load_file(folder / SINGLE)
    names = sorted(tensors)
    parts = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / file)
    (folder / SINGLE).unlink()
    shard_of = {name: file for file, own in parts.items() for name in own}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    (folder / "pytorch_model.bin").write_bytes(b"x" * 1000)
    (folder / "consolidated.safetensors").write_bytes(b"x" * 1000)
    (folder / "words.tiktoken").write_text("YQ== 0\n")
    return folder


def weights(hub: StandInHub) -> dict[str, int]:
    """Return the bytes of weights that went out."""
    return {name: count for name, count in hub.sent.items() if name.endswith((".safetensors", ".bin"))}


def test_headers_alone_are_read_until_a_weight_is_needed(hub: StandInHub, sharded: Path) -> None:
    hub.add("lab/tiny", FIRST, sharded, "main")
    checkpoint = Checkpoint.open("lab/tiny")
    assert (checkpoint.name, checkpoint.revision) == ("lab/tiny", FIRST)
    assert checkpoint.inventory == Checkpoint.open(sharded).inventory
    headers = {
        name: 8 + int.from_bytes((sharded / name).read_bytes()[:8], "little")
        for name in ("model-1-of-2.safetensors", "model-2-of-2.safetensors")
    }
    whole = {name: (sharded / name).stat().st_size for name in headers}
    assert all(headers[name] <= count <= 64 << 10 < whole[name] for name, count in weights(hub).items())
    assert weights(hub).keys() == headers.keys() and not list(checkpoint.path.glob("*.safetensors"))
    hub.forget()
    assert Checkpoint.open(f"lab/tiny@{FIRST}").inventory == checkpoint.inventory
    assert weights(hub) == {}, "headers of a commit do not change, so they are asked for once"
    assert checkpoint.content == Checkpoint.open(sharded).content
    assert weights(hub) == whole
    assert {path.name for path in checkpoint.path.iterdir()} == {
        *whole, INDEX, "config.json", "generation_config.json", "words.tiktoken"
    }  # fmt: skip
    hub.forget()
    assert load_model("lab/tiny").num_parameters() == load_model(sharded).num_parameters()
    assert weights(hub) == {}


def test_a_long_header_takes_a_second_request_and_a_server_without_ranges_gives_the_same(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_checkpoint("qwen2_moe", tmp_path / "model")
    hub.add("lab/tiny", FIRST, folder, "main")
    expected = Checkpoint.open(folder).inventory
    monkeypatch.setattr("bench.checkpoint.hub._FIRST", 100)
    assert Checkpoint.open("lab/tiny").inventory == expected
    assert next(range_ for _, path, range_ in hub.asked if path.endswith(SINGLE) and range_) == "bytes=0-99"
    assert sum(path.endswith(SINGLE) for _, path, _ in hub.asked) == 2
    hub.ranges = False
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert Checkpoint.open("lab/tiny").inventory == expected


def test_a_revision_is_a_commit_from_then_on(hub: StandInHub, sharded: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint("mixtral", tmp_path / "other", seed=1)
    hub.add("lab/tiny", FIRST, sharded, "main", "v1")
    hub.add("lab/tiny", SECOND, other, "v2", "refs/pr/1")
    old, new = Checkpoint.open("lab/tiny", "v1"), Checkpoint.open("lab/tiny", "v2")
    assert (old.revision, new.revision) == (FIRST, SECOND) and old.content != new.content
    named = Checkpoint.open("lab/tiny@v2")
    assert (named.name, named.revision, named.content) == ("lab/tiny", SECOND, new.content)
    assert Checkpoint.open("lab/tiny", "refs/pr/1").revision == SECOND
    hub.revisions["lab/tiny"]["v1"] = SECOND
    assert Checkpoint.open("lab/tiny", "v1").revision == SECOND, "a branch that moved is followed"
    assert local_folder("lab/tiny@v2") == (new.path, SECOND)


def test_what_is_left_unfinished_is_gone_on_with(
    hub: StandInHub, sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that breaks goes on at its byte; after a failure, shards that are whole are not fetched again."""
    hub.add("lab/tiny", FIRST, sharded, "main")
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda _: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    first, second = "model-1-of-2.safetensors", "model-2-of-2.safetensors"
    sizes = {name: (sharded / name).stat().st_size for name in (first, second)}
    checkpoint = Checkpoint.open("lab/tiny")
    hub.forget()
    hub.cut[first] = 70_000
    source = found_source("lab/tiny")
    assert source.hub is not None
    source.hub.fetch([first])
    assert weights(hub) == {first: sizes[first]}, "the second request asks for the rest"
    assert "bytes=70000-" in [range_ for _, path, range_ in hub.asked if path.endswith(first)]
    (sharded / second).rename(sharded / "away")
    with pytest.raises(CheckpointError, match="from the hub failed"):
        checkpoint.complete()
    (sharded / "away").rename(sharded / second)
    hub.forget()
    assert checkpoint.content == Checkpoint.open(sharded).content
    assert weights(hub) == {second: sizes[second]}


def test_a_model_that_no_family_reads_costs_no_weight(hub: StandInHub, sharded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unknown"
    folder.mkdir()
    for file in sharded.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    hub.add("lab/unknown", FIRST, folder, "main")
    with pytest.raises(NotMoEError, match="unheard_of"):
        Checkpoint.open("lab/unknown")
    assert weights(hub) == {}


def test_refusals_say_what_to_do(hub: StandInHub, sharded: Path, tmp_path: Path) -> None:
    hub.add("lab/tiny", FIRST, sharded, "main")
    hub.add("lab/gated", FIRST, sharded, "main")
    hub.gated.add("lab/gated")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((sharded / "config.json").read_bytes())
    hub.add("lab/bare", FIRST, bare, "main")
    for name, words in (
        ("lab/none", "no model lab/none.*hf auth login"),
        ("lab/gated", "gated; accept its licence on https://huggingface.co/lab/gated"),
        ("lab/tiny@v9", "no revision v9"),
        ("lab/tiny@", "is no revision"),
        ("lab/bare", "neither model.safetensors nor"),
        (f"{sharded.parent}/absent@v1", "there is no folder"),
        ("pocket-mixtral@v1", "lies on this machine and has no revision v1"),
    ):
        with pytest.raises(CheckpointError, match=words):
            Checkpoint.open(name)
    with pytest.raises(CheckpointError, match="states a revision, and so does"):
        Checkpoint.open("lab/tiny@main", "main")
    with pytest.raises(CheckpointError, match="states a revision, and so does"):
        at_revision("lab/tiny@main", "main")
    with pytest.raises(CheckpointError, match="has no revision v1"):
        Checkpoint.open(sharded, "v1")
    assert (at_revision("lab/tiny", "v1"), at_revision("lab/tiny", None)) == ("lab/tiny@v1", "lab/tiny")


def test_a_file_that_is_no_safetensors_file_is_named(hub: StandInHub, sharded: Path, tmp_path: Path) -> None:
    folder = tiny_checkpoint("mixtral", tmp_path / "model")
    (folder / SINGLE).write_bytes(b"\xff" * 4000)
    hub.add("lab/tiny", FIRST, folder, "main")
    with pytest.raises(CheckpointError, match=r"model.safetensors of the hub's lab/tiny is no safetensors file"):
        Checkpoint.open("lab/tiny")
    hub.add("lab/other", FIRST, sharded, "main")
    model = HubModel.found("lab/other", None)
    with pytest.raises(CheckpointError, match=r"has no file absent\.safetensors at 111111111111"):
        model.fetch(["absent.safetensors"])


def test_a_cut_off_network_is_told_with_what_is_there(
    hub: StandInHub, sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("lab/tiny", FIRST, sharded, "main")
    checkpoint = Checkpoint.open("lab/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert Checkpoint.open("lab/tiny").inventory == checkpoint.inventory, "small files and headers are remembered"
    with pytest.raises(CheckpointError, match=r"in part only, and the hub is switched off \(HF_HUB_OFFLINE\); fetch"):
        checkpoint.complete()


def test_inspect_through_the_address_of_the_environment(hub: StandInHub, sharded: Path, tmp_path: Path) -> None:
    hub.add("lab/tiny", FIRST, sharded, "v1")
    place = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    own = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-m", "bench.cli", "inspect", "lab/tiny", "--revision", "v1"],
        env={**own, **place, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert f"commit {FIRST} of the hub's lab/tiny; no weight was fetched" in done.stdout
    assert set(weights(hub)) == {"model-1-of-2.safetensors", "model-2-of-2.safetensors"}
    assert max(weights(hub).values()) <= 64 << 10
