"""Pushing through huggingface_hub's own code, with the transport replaced: what is sent, and every refusal."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx  # the transport of huggingface_hub
import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils._http import default_client_factory

from bench.cards.model_card import card_files, write_card
from bench.cards.push import files_to_push, push
from methods.framework.errors import CheckpointError, PublishError
from tests.bench.cards.test_model_card import SCORED, written
from tests.support.command_line import moebench
from tests.support.tiny import tiny_checkpoint


class Hub:
    """Answers as the hub does, and keeps what it gets."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}
        self.refusal: tuple[str, int] | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.asked.append(f"{request.method} {path}")
        if self.refusal is not None and path.startswith(self.refusal[0]):
            return httpx.Response(self.refusal[1], json={"error": "no"}, request=request)
        return httpx.Response(200, json=self.answer(path, request), request=request)

    def answer(self, path: str, request: httpx.Request) -> Any:
        if path == "/api/repos/create":
            self.made.append(json.loads(request.content))
            return {"url": "https://huggingface.co/lab/half", "id": "lab/half"}
        if path.endswith("/preupload/main"):
            names = [one["path"] for one in json.loads(request.content)["files"]]
            mode = {True: "lfs", False: "regular"}
            return {
                "files": [
                    {"path": n, "uploadMode": mode[n.endswith(".safetensors")], "shouldIgnore": False} for n in names
                ]
            }
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(request.content)["objects"]
            upload = lambda oid: {"upload": {"href": f"https://huggingface.co/put/{oid}"}}  # noqa: E731
            return {"objects": [{**one, "actions": upload(one["oid"])} for one in objects], "transfer": "basic"}
        if path.startswith("/put/"):
            self.stored[path.removeprefix("/put/")] = request.read()
            return {}
        if path.endswith("/commit/main"):
            for line in request.content.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "lfsFile":
                    self.files[entry["value"]["path"]] = self.stored[entry["value"]["oid"]]
            return {"commitUrl": "https://huggingface.co/lab/half/commit/1", "commitOid": "1", "success": True}
        return {}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    answers = Hub()
    huggingface_hub.set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(answers)))
    yield answers
    huggingface_hub.set_client_factory(default_client_factory)  # which heeds HF_HUB_OFFLINE
    huggingface_hub.close_session()


def test_everything_but_hidden_files_is_sent_to_a_private_repository(hub: Hub, tmp_path: Path) -> None:
    out = written(tmp_path)
    write_card(out, SCORED)
    (out / ".cache").write_text("mine")
    assert push(out, "lab/half") == "https://huggingface.co/lab/half/commit/1"
    assert [(one["name"], one["organization"], one["visibility"]) for one in hub.made] == [("half", "lab", "private")]
    local = {name: (out / name).read_bytes() for name in files_to_push(out)}
    assert hub.files == local and ".cache" not in local
    assert {"README.md", ".eval_results/arc_easy.yaml", "LICENSE", "model.safetensors", "plan.json"} <= set(local)
    push(out, "lab/half", public=True, update=True)
    assert hub.made[-1]["visibility"] == "public"


def test_a_dry_run_shows_the_files_and_asks_nobody(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    out = written(tmp_path)
    (out / "README.md").unlink()
    status, told = moebench(capsys, "push", out, "lab/half", "--dry-run")
    assert status == 0 and hub.asked == [] and not (out / "README.md").exists()
    assert f"{(out / 'model.safetensors').stat().st_size:,}" in told and "README.md" in told and "private" in told
    assert files_to_push(out)["README.md"] == len(card_files(out)["README.md"].encode()), (
        "a folder of an earlier version gets its card"
    )


@pytest.mark.parametrize(
    ("where", "status", "words"),
    [
        ("/api/repos/create", 409, "lab/half exists on the hub; choose another name, or .* --update"),
        ("/api/repos/create", 401, "does not know the token"),
        ("/api/repos/create", 403, "may not write to lab/half; take one of kind `write`"),
        ("/api/models", 500, "what was uploaded is kept, so try again, with --update"),
    ],
)
def test_refusals_of_the_hub_say_what_to_do(hub: Hub, tmp_path: Path, where: str, status: int, words: str) -> None:
    out = written(tmp_path)
    hub.refusal = (where, status)
    with pytest.raises(PublishError, match=words):
        push(out, "lab/half")
    assert hub.files == {}


def test_what_can_be_known_is_known_before_the_hub_is_asked(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = written(tmp_path)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))

    def refused(kind: type[Exception], words: str, folder: Path, name: str = "lab/half") -> None:
        with pytest.raises(kind, match=words):
            push(folder, name)
        assert hub.asked == []

    refused(PublishError, "nobody is logged in to the hub: .*hf auth login", out)
    for name in ("half", "lab/half/more", "lab/a b", ""):
        refused(PublishError, "is no name of a repository; give OWNER/NAME", out, name)
    refused(CheckpointError, "there is no folder", tmp_path / "absent")
    refused(CheckpointError, "nothing tells what was done", tiny_checkpoint("mixtral"))
    (out / "generation_config.json").write_text('{"do_sample": true}')
    refused(CheckpointError, "does not hold what was written", out)


def test_no_network_is_one_clear_error(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = written(tmp_path)

    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route", request=request)

    huggingface_hub.close_session()
    huggingface_hub.set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(fail)))
    with pytest.raises(PublishError, match="pushing to lab/half failed: ConnectError: no route"):
        push(out, "lab/half")
