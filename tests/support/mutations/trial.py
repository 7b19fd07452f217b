"""Runs of pytest on a copy of the tree, each in a fork of a process that has the slow libraries imported.

The parent imports nothing of this project but this folder, so that a fork sees the copy alone: by ``sys.path`` and, for the
processes that tests start, by ``PYTHONPATH``.
"""

from __future__ import annotations

import compileall
import hashlib
import importlib
import os
import py_compile
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOTS = ("analysis", "bench", "methods", "sweeps", "tests")
"""Packages of a tree."""
MODELS = ("deepseek_v2", "deepseek_v3", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
WARM = (
    *("numpy", "pandas", "pydantic", "rich", "safetensors.torch", "scipy.optimize", "scipy.stats", "torch._dynamo"),
    *("transformers", "transformers.models.auto.modeling_auto", "compressed_tensors", "accelerate"),
    *("pytest", "hypothesis"),
    *(f"transformers.models.{name}.modeling_{name}" for name in MODELS),
)
"""What is imported once, before any fork. Nothing that starts threads."""
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs", "node_modules")
"""What a copy of the tree lacks."""
State = Literal["passed", "failed", "hung", "empty"]


@dataclass(frozen=True)
class Run:
    """How a run of some tests ended.

    Args:
        state: ``empty`` where there is no such test.
        failed: ids of the tests that failed, or of files that could not be collected.
        seconds: by the clock.
        tail: end of the output.
    """

    state: State
    failed: tuple[str, ...] = ()
    seconds: float = 0.0
    tail: str = ""


class Failures:
    """Plug-in of pytest that writes the ids of what fails to a file."""

    def __init__(self, path: Path) -> None:
        """Write to ``path``."""
        self._path = path

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note a test that failed, or whose fixtures did."""
        self.pytest_collectreport(report)

    def pytest_collectreport(self, report: Any) -> None:
        """Note a file that could not be collected."""
        if report.failed:
            with self._path.open("a") as file:
                file.write(f"{report.nodeid}\n")


def warm() -> None:
    """Import what forks share, with one thread."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"}
    for name in WARM:
        importlib.import_module(name)


def tree_digest(tree: Path) -> str:
    """Return a digest of the packages of ``tree``, without the defects themselves."""
    digest = hashlib.sha256()
    own = tree / "tests" / "support" / "mutations"
    for root in ROOTS:
        for path in sorted((tree / root).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and own not in path.parents:
                digest.update(f"{path.relative_to(tree)}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


class Copy:
    """A copy of a tree in a folder of its own, with folders for caches and temporary files beside it."""

    def __init__(self, source: Path, folder: Path) -> None:
        """Copy ``source`` into ``folder``."""
        self.tree, self._cache, self._temporary = folder / "tree", folder / "cache", folder / "t"
        self._log, self._failed = folder / "log", folder / "failed"
        shutil.copytree(source, self.tree, ignore=LEFT_OUT)
        # By the hash of the source: a defect that is planted and removed within a second leaves no stale code.
        mode = py_compile.PycInvalidationMode.CHECKED_HASH
        for root in ROOTS:
            compileall.compile_dir(self.tree / root, quiet=2, invalidation_mode=mode)

    def run(self, options: Sequence[str], limit: float) -> Run:
        """Run pytest with ``options`` for at most ``limit`` seconds."""
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir()
        for path in (self._log, self._failed):
            path.write_text("")
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            self._become(options)
        code: int | None = None
        while code is None and time.monotonic() - begun < limit:
            done, status = os.waitpid(child, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if done else None
            time.sleep(0.0 if done else 0.05)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)  # and what its tests left running
        if code is None:
            os.waitpid(child, 0)
        state: State = "hung" if code is None else "passed" if code == 0 else "empty" if code in (4, 5) else "failed"
        failed = tuple(dict.fromkeys(self._failed.read_text().splitlines()))
        return Run(state, failed, round(time.monotonic() - begun, 1), self._log.read_text(errors="replace")[-1500:])

    def _become(self, options: Sequence[str]) -> Any:
        """Be pytest on the copy; never returns."""
        code = 70
        try:
            os.setsid()
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for old, new in ((nothing, 0), (log, 1), (log, 2)):
                os.dup2(old, new)
            os.chdir(self.tree)
            os.environ |= {"PYTHONPATH": str(self.tree), "TMPDIR": str(self._temporary), "PYTHONDONTWRITEBYTECODE": "1"}
            os.environ["XDG_CACHE_HOME"] = str(self._cache)
            sys.dont_write_bytecode = True
            for name in [name for name in sys.modules if name.partition(".")[0] in ROOTS]:
                del sys.modules[name]
            sys.path[:] = [str(self.tree), *(p for p in sys.path if p and not (Path(p) / "tests" / "support").exists())]
            importlib.invalidate_caches()
            import tempfile

            import pytest

            tempfile.tempdir = None
            plain = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist", f"--rootdir={self.tree}"]
            code = int(pytest.main([*plain, *options], plugins=[Failures(self._failed)]))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
