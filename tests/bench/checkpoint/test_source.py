"""Hub models through huggingface_hub's own code, with the transport replaced; local folders; and every refusal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx  # the transport of huggingface_hub
import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils._http import default_client_factory

from bench.checkpoint.checkpoint import Checkpoint
from bench.checkpoint.source import local_folder
from methods.framework.errors import CheckpointError
from tests.support.tiny import tiny_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Handler], None]:
    """Answer requests to the hub by a function, with an empty local cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub._snapshot_download.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def serve(handler: Handler) -> None:
        huggingface_hub.set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(handler)))

    yield serve
    huggingface_hub.set_client_factory(default_client_factory)  # which heeds HF_HUB_OFFLINE
    huggingface_hub.close_session()


def of_folder(folder: Path, asked: list[str]) -> Handler:
    """Serve a folder as the hub model ``lab/tiny``."""

    def handle(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        asked.append(f"{request.method} {path}")
        if "/tree/" in path:
            files = [
                {
                    "type": "file",
                    "path": p.name,
                    "size": p.stat().st_size,
                    "oid": hashlib.sha1(p.read_bytes()).hexdigest(),
                }
                for p in sorted(folder.iterdir())
            ]
            return httpx.Response(200, json=files, request=request)
        if path.startswith("/api/models/lab/tiny"):
            return httpx.Response(200, json={"id": "lab/tiny", "sha": COMMIT}, request=request)
        file = folder / path.rsplit("/", 1)[-1]
        data = file.read_bytes()
        headers = {
            "x-repo-commit": COMMIT,
            "etag": f'"{hashlib.sha1(data).hexdigest()}"',
            "content-length": str(len(data)),
        }
        return httpx.Response(200, content=b"" if request.method == "HEAD" else data, headers=headers, request=request)

    return handle


def test_a_hub_model_is_fetched_once_without_other_weight_formats(
    hub: Callable[[Handler], None], tmp_path: Path
) -> None:
    folder = tiny_checkpoint("mixtral", tmp_path / "served")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"x" * 10)
    (folder / "consolidated.00.safetensors").write_bytes(b"x" * 10)
    asked: list[str] = []
    hub(of_folder(folder, asked))
    checkpoint = Checkpoint.open("lab/tiny")
    assert (checkpoint.name, checkpoint.revision) == ("lab/tiny", COMMIT)
    assert checkpoint.content == Checkpoint.open(folder).content
    assert sorted(p.name for p in checkpoint.path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert not any("pytorch_model" in line or "consolidated" in line for line in asked)
    bodies = [line for line in asked if line.startswith("GET") and "resolve" in line]
    Checkpoint.open("lab/tiny", revision=COMMIT)
    assert [line for line in asked if line.startswith("GET") and "resolve" in line] == bodies


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "RepoNotFound", "no model lab/none"),
        (403, "GatedRepo", "gated; accept its licence"),
        (404, "RevisionNotFound", "no revision v9"),
        (500, "", "fetching|cannot be reached"),
    ],
)
def test_refusals_of_the_hub_give_one_clear_error(
    hub: Callable[[Handler], None], status: int, code: str, words: str
) -> None:
    hub(lambda request: httpx.Response(status, headers={"X-Error-Code": code}, request=request))
    with pytest.raises(CheckpointError, match=words):
        local_folder("lab/none", "v9")


def test_no_network_gives_one_clear_error(hub: Callable[[Handler], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route", request=request)

    hub(fail)
    with pytest.raises(CheckpointError, match="neither a folder nor in the local cache, and the hub cannot be reached"):
        local_folder("lab/none")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        local_folder("lab/none")


def test_local_folders_and_names_that_are_neither(tmp_path: Path) -> None:
    assert local_folder(tmp_path) == (tmp_path, None)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        local_folder(tmp_path / "file")
    for name in (tmp_path / "absent", "./absent", "/absent", "a/b/c", "lab/with space"):
        with pytest.raises(CheckpointError, match="there is no folder"):
            local_folder(name)


@pytest.mark.parametrize("name", ["a" * 5000, "a/" * 3000, "a\0b"])
def test_names_that_no_folder_can_have_are_an_error(name: str) -> None:
    with pytest.raises(CheckpointError, match="cannot look at"):
        local_folder(name)
