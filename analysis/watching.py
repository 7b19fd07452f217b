"""The leaderboard page served on this machine while records come in, and made again when they do."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from analysis.load import records_folder
from analysis.report import Report, report
from methods.framework.errors import ConfigError

HOST = "127.0.0.1"
_CALM = 4
"""A report is made again after that many times what the last one took, so that many records do not keep a processor busy."""
_SCRIPT = Path(__file__).parent / "templates" / "watch.js"
_POLICY = "default-src 'none';"


class Watched:
    """A report that is kept up to date."""

    def __init__(self, stores: Sequence[Path], out: Path, *, title: str, floor: float) -> None:
        """Make nothing yet.

        Args:
            stores: stores, or folders of records; those that are not there yet are looked for each time.
            out: folder to write into.
            title: heading of the page.
            floor: retention below which runs are marked, 0 to 1.
        """
        self.out = out
        self.version = 0
        self._stores, self._title, self._floor = stores, title, floor
        self._seen: object = None
        self._rested = 0.0

    def refresh(self) -> Report | None:
        """Write the report again where records came in or went; without figures, which take longer than a record may.

        Returns:
            What was written; None where nothing changed, or the last report was made just now.
        """
        folders = [records_folder(store) for store in self._stores]
        state = [_state(folder) for folder in folders]
        if state == self._seen or time.monotonic() < self._rested:
            return None
        begun = time.monotonic()
        there = [folder for folder in folders if folder.is_dir()]
        written = report(there, self.out, title=self._title, floor=self._floor, figures=False)
        self._seen, self.version = state, self.version + 1
        self._rested = time.monotonic() + _CALM * (time.monotonic() - begun)
        return written

    @contextmanager
    def served(self, port: int) -> Iterator[str]:
        """Serve the report to browsers of this machine while the block runs, and give its address.

        Args:
            port: 0 for any that is free.

        Raises:
            ConfigError: the port is taken.
        """
        try:
            server = ThreadingHTTPServer((HOST, port), partial(_Handler, watched=self, directory=str(self.out)))
        except OSError as error:
            raise ConfigError(
                f"cannot serve on port {port} of {HOST}: {error.strerror}; name another with --port, or 0 for any"
            ) from error
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.2,), daemon=True)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_address[1]}/"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def page(self) -> bytes:
        """Return the page with a script that asks for newer ones, which it may ask this server alone."""
        text = (self.out / "leaderboard.html").read_text(encoding="utf-8")
        text = text.replace(_POLICY, f"{_POLICY} connect-src 'self';", 1)
        script = f"<script>const version = {self.version};\n{_SCRIPT.read_text(encoding='utf-8')}</script>"
        head, end, tail = text.rpartition("</body>")
        return f"{head}{script}\n{end}{tail}".encode()


class _Handler(SimpleHTTPRequestHandler):
    """Hands out the page, its number, and the files beside it."""

    def __init__(self, *arguments: Any, watched: Watched, **options: Any) -> None:
        self._watched = watched
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        # A page of another site could have its own name lead here; a browser then names that.
        if self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path == "/version":
            self._answer(json.dumps(self._watched.version).encode(), "application/json")
        elif self.path in ("/", "/leaderboard.html"):
            self._answer(self._watched.page(), "text/html; charset=utf-8")
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def list_directory(self, path: Any) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass  # the terminal tells what came in, not who looked


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    """Return name, time and size of each record; empty where there is no such folder yet."""
    try:
        entries = [entry for entry in os.scandir(folder) if entry.name.endswith(".json")]
        return {entry.name: (entry.stat().st_mtime_ns, entry.stat().st_size) for entry in entries}
    except OSError:
        return {}
