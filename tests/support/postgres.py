"""A PostgreSQL server of a test's own: ``with Server(folder) as server: server.url``."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.slurm import free_ports
from tests.support.sweep_forks import wait_for

PASSWORD = "open-sesame"
_USERS = ("postgres", "nobody")


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, None where there is no server."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "postgres").exists()), None)


class Server:
    """PostgreSQL on a free port, with a user and a password; as another user where root runs the tests, which it refuses."""

    def __init__(self, folder: Path) -> None:
        """Describe a server whose files lie in ``folder``; every user must be able to enter the folders above it."""
        found = programs()
        assert found is not None
        self._programs, self._folder, (self.port,) = found, folder, free_ports(1)
        self.url = f"postgresql://tests@127.0.0.1:{self.port}/postgres"

    @property
    def secret_url(self) -> str:
        """The URL with its password."""
        return self.url.replace("tests@", f"tests:{PASSWORD}@")

    def __enter__(self) -> Self:
        data, secret = self._folder / "data", self._folder / "secret"
        data.mkdir()
        secret.write_text(PASSWORD)
        if os.geteuid() == 0:
            user = pwd.getpwnam(next(name for name in _USERS if name in {entry.pw_name for entry in pwd.getpwall()}))
            self._as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            for path in (data, secret):
                os.chown(path, user.pw_uid, user.pw_gid)
            self._folder.chmod(0o755)
        else:
            self._as_user = []
        subprocess.run(
            [*self._as_user, self._programs / "initdb", f"--pgdata={data}", "--username=tests", "--auth=scram-sha-256",
             f"--pwfile={secret}", "--no-sync", "--no-locale", "--encoding=UTF8"],
            check=True, capture_output=True, cwd="/",
        )  # fmt: skip
        self._start()
        return self

    def _start(self) -> None:
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off"}
        options = [f"-c{name}={value}" for name, value in settings.items()]
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [*self._as_user, self._programs / "postgres", "-D", self._folder / "data", *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
            )  # fmt: skip
        ready = [self._programs / "pg_isready", "--quiet", "--host=127.0.0.1", f"--port={self.port}"]
        wait_for(lambda: subprocess.run(ready).returncode == 0, 30)

    def stop(self) -> None:
        """Stop at once."""
        self._process.send_signal(3)  # SIGQUIT: without waiting for clients
        self._process.wait(30)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.stop()
