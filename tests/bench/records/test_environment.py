"""What is recorded about the machine and the checkout."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch

import bench.records.environment
from bench.records.environment import environment


def _git(folder: Path, *arguments: str) -> str:
    settings = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *settings, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_versions_and_threads() -> None:
    found = environment()
    assert found.versions["torch"] == metadata.version("torch")
    assert found.versions["transformers"] == metadata.version("transformers")
    assert found.threads == torch.get_num_threads()
    assert found.device
    assert "no-such-package" not in found.versions


def test_commit_and_dirty_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.records.environment, "_CHECKOUT", tmp_path)
    assert environment().commit is None and environment().dirty is None
    _git(tmp_path, "init", "-q")
    assert environment().commit is None and environment().dirty is None  # no commit yet
    (tmp_path / "a").write_text("1")
    _git(tmp_path, "add", "a")
    _git(tmp_path, "commit", "-qm", "a")
    clean = environment()
    assert clean.commit == _git(tmp_path, "rev-parse", "HEAD") and clean.dirty is False
    (tmp_path / "a").write_text("2")
    assert environment().dirty is True
