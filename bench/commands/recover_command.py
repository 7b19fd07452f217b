"""``moebench recover``: train a compressed checkpoint on text, with a bar that shows the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.checkpoint.source import at_revision
from bench.commands.library_log import library_log
from bench.commands.options import DEFAULT_STORE, Model, RevisionOption, StoreOption, TrustOption
from bench.commands.printing import console, print_ending, say_stage
from bench.commands.setting_options import Given, Part, with_settings
from bench.settings.recovery import RecoverySettings
from bench.settings.strict import read_settings, validated

if TYPE_CHECKING:
    from bench.records.mirror import Tracker
    from bench.recovery.recover import Recovered

KEPT = (
    "the last saved state of the training is kept in the store; "
    "the same command goes on from there, to the same weights"
)
"""Said on Ctrl-C."""
_OFFERED = ("kind", "corpus", "sequences", "length", "epochs", "steps", "batch", "rate", "experts", "seed")


@with_settings(Part(RecoverySettings, _OFFERED))
def recover(
    given: Given,
    model: Model,
    revision: RevisionOption = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; options given here win")] = None,
    teacher: Annotated[str | None, typer.Option(help="the uncompressed model, for the two distillations")] = None,
    store: StoreOption = DEFAULT_STORE,
    trust_remote_code: TrustOption = False,
    track: Annotated[str | None, typer.Option(help="W&B: offline or online; default: not mirrored")] = None,
) -> None:
    """Read the settings, and train."""
    recover_from_command_line(
        at_revision(model, revision),
        given,
        config=config,
        teacher=teacher,
        store=store,
        trust_remote_code=trust_remote_code,
        track=track,
    )


def recover_from_command_line(
    path: str,
    given: Mapping[str, Any],
    *,
    config: Path | None,
    teacher: str | None,
    store: Path,
    trust_remote_code: bool = False,
    track: str | None = None,
) -> Recovered:
    """Recover a checkpoint and print what it took.

    Args:
        path: folder, hub id or pocket model.
        given: fields of ``RecoverySettings``; those that are None come from ``config``, or are left at their defaults.
        config: YAML file of settings.
        teacher: the uncompressed checkpoint; None where the kind reads none.
        store: store that the result goes to.
        trust_remote_code: whether the tokenizer may run Python code that lies in ``path``.
        track: W&B mode, None for no mirror.
    """
    from bench.commands.live import tracker_of
    from bench.recovery.recover import recover as train

    document = read_settings(config) if config else {}
    document |= {name: value for name, value in given.items() if value is not None}
    settings = validated(document, RecoverySettings, str(config or "options"))
    tracker = tracker_of(track or "disabled", store)
    with tracker, library_log(store, console()) as noise, loss_bar(settings.kind) as progress:
        mirrored = _Mirrored(path, settings, tracker) if track else None

        def told(step: int, steps: int, loss: float) -> None:
            progress(step, steps, loss)
            if mirrored is not None:
                mirrored.tell(step, steps, loss)

        done = train(
            path, settings, teacher=teacher, store_folder=store, progress=told, trust_remote_code=trust_remote_code
        )
        run = mirrored.end(done) if mirrored is not None else None
    console().print(
        f"{settings.kind}: {done.steps} steps on {done.tokens:,} tokens of {done.corpus}, {done.trained_parameters:,} weights "
        f"trained, loss {done.losses[0]:.4f} to {done.losses[1]:.4f}, {done.seconds:.0f} CPU seconds",
        soft_wrap=True,
        highlight=False,
    )
    print_ending(
        console(),
        {
            "checkpoint": done.path,
            **({"W&B": run} if run else {}),
            **noise.place(),
        },
        [
            (f"moebench time {path} {done.path}", "its speed beside what it was made of"),
            (f"moebench serve {done.path}", "serves it"),
            (f"moebench push {done.path} REPO --dry-run", "what would go to the hub"),
        ],
    )
    return done


class _Mirrored:
    """The run of W&B of a training, which begins with it."""

    def __init__(self, path: str, settings: RecoverySettings, tracker: Tracker) -> None:
        from bench.library.opening import open_checkpoint
        from bench.records.verb_runs import training_begins

        opened = open_checkpoint(path)
        chosen = settings.model_dump(mode="json", exclude_defaults=True)
        self._source, self._tracker = opened.path, tracker
        self._row = training_begins(opened.name, opened.inventory.family, settings.kind, chosen)
        tracker.begin(self._row)

    def tell(self, step: int, steps: int, loss: float) -> None:
        self._tracker.tell(self._row.id, f"recover {step}/{steps} loss {loss:.6g}")

    def end(self, done: Recovered) -> Path | None:
        from dataclasses import asdict

        from bench.records.verb_runs import end_training

        numbers = {name: value for name, value in asdict(done).items() if name != "path"}
        return end_training(self._row, self._source, done.path, numbers, self._tracker)


@contextmanager
def loss_bar(title: str) -> Iterator[Callable[[int, int, float], None]]:
    """Yield a function that draws the steps done out of all, with the loss of the last one and the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    out = console()
    if not out.is_terminal:
        say_stage(title)
        yield lambda done, total, loss: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task(title, total=None)

        def draw(done: int, total: int, loss: float) -> None:
            progress.update(task, completed=done, total=total, description=f"{title} loss {loss:.4f}")

        yield draw
