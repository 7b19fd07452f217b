"""A recovery that was interrupted goes on to the very weights of one that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.checkpoint.checkpoint import SINGLE
from bench.recovery import recover as module
from bench.recovery.recover import recover
from methods.framework.errors import CheckpointError
from tests.support.recoveries import CASES, compressed, settings, write_text


class Stop(Exception):
    """Stands for whatever ends a process."""


def stop_at(step: int) -> Callable[[int, int, float], None]:
    def progress(done: int, total: int, loss: float) -> None:
        if done == step:
            raise Stop

    return progress


def states(store: Path) -> list[Path]:
    return sorted((store / "cache" / "recovery").glob("*/*"))


@pytest.mark.parametrize(("kind", "experts"), CASES)
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(kind: str, experts: bool | None, tmp_path: Path) -> None:
    """Batches of three out of eight windows, so that order matters; stopped twice, once between two states."""
    source, student = compressed("mixtral", "mapped")
    text = write_text(tmp_path / "ids.npy")
    chosen = settings(kind, text, experts=experts, batch=3)
    whole = recover(student.path, chosen, teacher=source.path, store_folder=tmp_path / "whole")
    store = tmp_path / "store"
    for step in (2, 5):
        with pytest.raises(Stop):
            recover(student.path, chosen, teacher=source.path, store_folder=store, save_every=2, progress=stop_at(step))
    assert len(states(store)) == 1 and not (store / "checkpoints").exists()
    torch.manual_seed(99)  # whatever the caller drew before does not matter
    steps: list[int] = []
    done = recover(
        student.path,
        chosen,
        teacher=source.path,
        store_folder=store,
        save_every=2,
        progress=lambda step, total, loss: steps.append(step),
    )
    assert steps == [5, 6]
    assert (done.path / SINGLE).read_bytes() == (whole.path / SINGLE).read_bytes()
    assert (done.path / SINGLE).read_bytes() != (student.path / SINGLE).read_bytes()
    assert (done.losses, done.digest, done.tokens) == (whole.losses, whole.digest, whole.tokens)
    assert states(store) == []


def test_the_state_matters(tmp_path: Path) -> None:
    """Without the optimiser's moments the resumed weights would differ: the comparison above can fail."""
    _, student = compressed("mixtral", "mapped")
    text = write_text(tmp_path / "ids.npy")
    chosen = settings("full", text, batch=3)
    whole = recover(student.path, chosen, store_folder=tmp_path / "whole")
    with pytest.raises(Stop):
        recover(student.path, chosen, store_folder=tmp_path / "store", save_every=2, progress=stop_at(4))
    (state,) = states(tmp_path / "store")
    document = torch.load(state)
    for moments in document["optimiser"]["state"].values():
        moments["exp_avg"].zero_()
    torch.save(document, state)
    done = recover(student.path, chosen, store_folder=tmp_path / "store")
    assert (done.path / SINGLE).read_bytes() != (whole.path / SINGLE).read_bytes()


def test_a_damaged_state_is_trained_anew(tmp_path: Path) -> None:
    _, student = compressed("mixtral", "mapped")
    chosen = settings("full", write_text(tmp_path / "ids.npy"), batch=3)
    whole = recover(student.path, chosen, store_folder=tmp_path / "whole")
    with pytest.raises(Stop):
        recover(student.path, chosen, store_folder=tmp_path / "store", save_every=2, progress=stop_at(4))
    (state,) = states(tmp_path / "store")
    state.write_bytes(state.read_bytes()[:1000])
    done = recover(student.path, chosen, store_folder=tmp_path / "store")
    assert (done.path / SINGLE).read_bytes() == (whole.path / SINGLE).read_bytes()


def test_other_settings_start_from_the_checkpoint(tmp_path: Path) -> None:
    _, student = compressed("mixtral", "mapped")
    text = write_text(tmp_path / "ids.npy")
    with pytest.raises(Stop):
        recover(
            student.path, settings("full", text), store_folder=tmp_path / "store", save_every=1, progress=stop_at(4)
        )
    steps: list[int] = []
    other = settings("full", text, seed=1)
    recover(student.path, other, store_folder=tmp_path / "store", progress=lambda *s: steps.append(int(s[0])))
    assert steps == [1, 2, 3, 4, 5, 6]


def test_training_that_is_done_is_not_repeated_when_writing_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, student = compressed("mixtral", "mapped")
    chosen = settings("full", write_text(tmp_path / "ids.npy"))

    def refuse(*_: object) -> None:
        raise CheckpointError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_recovered", refuse)
        with pytest.raises(CheckpointError, match="no space"):
            recover(student.path, chosen, store_folder=tmp_path / "store")
    steps: list[int] = []
    done = recover(student.path, chosen, store_folder=tmp_path / "store", progress=lambda *s: steps.append(int(s[0])))
    assert steps == [] and done.steps == 6
    whole = recover(student.path, chosen, store_folder=tmp_path / "whole")
    assert (done.path / SINGLE).read_bytes() == (whole.path / SINGLE).read_bytes()


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path) -> None:
    _, student = compressed("mixtral", "mapped")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    recover(student.path, settings("lora", write_text(tmp_path / "ids.npy"), steps=1), store_folder=tmp_path)
    assert torch.equal(torch.rand(3), expected)
