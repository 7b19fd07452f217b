"""A stand-in for the Hugging Face hub: folders as models, served over HTTP by ranges of bytes; counts what is asked."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class StandInHub:
    """What the stand-in has, and what it was asked.

    Args:
        models: by name, for each commit the folder of its files.
        revisions: by name, the commit of each branch and tag; ``main`` among them.
        gated: names whose files are refused.
        ranges: whether ranges of bytes are given; else whole files.
        cut: bytes after which the connection of the next download of a file breaks, by its name; once each.
    """

    models: dict[str, dict[str, Path]] = field(default_factory=dict)
    revisions: dict[str, dict[str, str]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    ranges: bool = True
    cut: dict[str, int] = field(default_factory=dict)
    url: str = ""
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes of each file that went out."""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and range of each request."""

    def add(self, name: str, commit: str, folder: Path, *revisions: str) -> None:
        """Serve ``folder`` as the ``commit`` of a model, which ``revisions`` name.

        Args:
            name: owner and model.
            commit: 40 hexadecimal digits.
            folder: its files.
            revisions: branches and tags.
        """
        self.models.setdefault(name, {})[commit] = folder
        self.revisions.setdefault(name, {}).update(dict.fromkeys(revisions, commit))

    def commit_of(self, name: str, revision: str) -> str | None:
        """Return the commit that a branch, tag or commit of a model stands for."""
        return self.revisions[name].get(revision, revision if revision in self.models[name] else None)

    def forget(self) -> None:
        """Begin to count anew."""
        self.sent.clear()
        self.asked.clear()


@contextmanager
def stand_in_hub() -> Iterator[StandInHub]:
    """Serve a hub on this machine for the length of the block."""
    hub = StandInHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with _Server(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    """Says nothing of readers that go away."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing."""


class _Handler(BaseHTTPRequestHandler):
    """Answers as the hub does, as far as huggingface_hub asks."""

    hub: StandInHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _answer(self, body: bool) -> None:
        path = urlsplit(self.path).path
        self.hub.asked.append((self.command, unquote(path), self.headers.get("Range", "")))
        api = path.startswith("/api/models/")
        parts = [unquote(part) for part in path.removeprefix("/api/models").strip("/").split("/")]
        name, rest = "/".join(parts[:2]), parts[2:]
        if name not in self.hub.models:
            return self._refuse(401, "RepoNotFound")
        if name in self.hub.gated and not (api and rest[:1] in ([], ["revision"])):
            return self._refuse(403, "GatedRepo")
        asked = rest[1] if len(rest) > 1 else "main"
        commit = self.hub.commit_of(name, asked)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        folder = self.hub.models[name][commit]
        if api and rest[:1] == ["tree"]:
            return self._json([_listed(file) for file in sorted(folder.iterdir())])
        if api:
            return self._json({"id": name, "sha": commit})
        file = folder / rest[2]
        if not file.is_file():
            return self._refuse(404, "EntryNotFound")
        self._file(file, commit, body)

    def _file(self, file: Path, commit: str, body: bool) -> None:
        data = file.read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        asked, size, start = self.headers.get("Range"), len(data), 0
        if asked and self.hub.ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(size, int(last) + 1 if last else size)
            data = data[start:stop]
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._head(206 if "Content-Range" in headers else 200, headers, len(data))
        if not body:
            return
        limit = self.hub.cut.pop(file.name, None)
        if limit is not None:
            data, self.close_connection = data[:limit], True
        self.hub.sent[file.name] += len(data)  # before they go: who has them all may look at once
        try:
            self.wfile.write(data)
        except ConnectionError:  # a reader that has what it wants leaves the rest
            self.hub.sent[file.name] -= len(data)
            self.close_connection = True

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self._head(200, {"Content-Type": "application/json"}, len(data))
        if self.command == "GET":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self._head(status, {"X-Error-Code": code, "X-Error-Message": code}, 0)

    def _head(self, status: int, headers: Mapping[str, str], length: int) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def _listed(file: Path) -> dict[str, Any]:
    data = file.read_bytes()
    return {"type": "file", "path": file.name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
