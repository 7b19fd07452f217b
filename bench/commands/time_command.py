"""``moebench time``: pairs of checkpoints, offline at several batch sizes or as servers at several request rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.checkpoint.source import at_revision, local_folder
from bench.commands.options import Model
from bench.commands.printing import console, print_ending
from bench.commands.setting_options import Given, Part, with_settings
from bench.records.record import Timing
from bench.settings.strict import validated
from bench.settings.timing_settings import OnlineProtocol, TimingConfig, TimingProtocol
from bench.timing.offline import TimingSession
from bench.timing.online import OnlineSession
from bench.timing.table import Rows
from methods.framework.errors import ConfigError

LOGS = Path("logs")
_OFFERED = ("repeats", "rounds", "prompt", "generate", "dtype", "threads", "residency", "kv_cache_bytes")


@with_settings(Part(TimingConfig, _OFFERED))
def time(
    given: Given,
    base: Model,
    compressed: Annotated[list[str], typer.Argument(help="likewise; each is timed in alternation with the base")],
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit of the base on the hub")] = None,
    batch: Annotated[list[int], typer.Option(help="sequences at once; may be repeated")] = [],  # noqa: B006  # typer reads it
    online: Annotated[bool, typer.Option("--online", help="time servers under load by `vllm bench serve`")] = False,
    rate: Annotated[list[float], typer.Option(help="online: requests per second, or inf; may be repeated")] = [],  # noqa: B006  # as above
    requests: Annotated[int | None, typer.Option(help="online: requests of each run")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for all numbers")] = None,
    track: Annotated[str | None, typer.Option(help="W&B: offline or online; default: not mirrored")] = None,
) -> None:
    """Time checkpoints, and print a table of speeds and one of memory."""
    from bench.timing.table import memory_table, offline_table, online_table, write_timings

    rows = time_models(
        at_revision(base, revision),
        compressed,
        given,
        batches=batch,
        rates=rate,
        requests=requests,
        online=online,
        report=lambda text: console(stderr=True).print(text, soft_wrap=True, highlight=False),
    )
    if out is not None:
        write_timings(rows, out)
    places: dict[str, object] = {**({"numbers": out} if out else {}), "logs": LOGS}
    if track is not None:
        from bench.commands.live import tracker_of
        from bench.records.verb_runs import track_timing

        with tracker_of(track, Path()) as tracker:
            folders = [local_folder(name)[0] for name in (base, *compressed)]
            if (run := track_timing(rows, folders, given, tracker)) is not None:
                places["W&B"] = run
    console().print((online_table if online else offline_table)(rows))
    console().print(memory_table(rows))
    again = [] if out else [("moebench time ... --out FILE", "keeps all numbers")]
    print_ending(
        console(),
        places,
        [*again, (f"moebench serve {compressed[0]}", "serves it")],
    )


def time_models(
    base: str,
    compressed: Sequence[str],
    settings: dict[str, Any],
    *,
    batches: Sequence[int],
    rates: Sequence[float],
    requests: int | None,
    online: bool,
    report: Callable[[str], None],
) -> Rows:
    """Time checkpoints against a base and return their timings, the base's first pair before all.

    Args:
        base: folder, hub id or pocket model.
        compressed: likewise, each of them paired with the base.
        settings: fields of ``PairProtocol`` and of the protocol chosen, those that are None left at their defaults.
        batches: batch sizes, offline only.
        rates: requests per second, online only.
        requests: of each run, online only; None for the default.
        online: whether servers are timed.
        report: called with what is done now.

    Raises:
        ConfigError: settings that are not allowed or do not belong together.
        CheckpointError: there is no such checkpoint.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if online and (batches or "rounds" in given):
        raise ConfigError(
            "--batch and --rounds are for timing without a server; with --online give --rate and --requests"
        )
    if not online and (rates or requests is not None):
        raise ConfigError("--rate and --requests are for servers; add --online, or give --batch")
    if batches:
        given["batch"] = batches[0] if len(batches) == 1 else tuple(batches)
    session = _session(given, online, rates, requests, report)
    folders = [(name, local_folder(name)[0]) for name in (base, *compressed)]
    rows: list[tuple[str, Timing]] = []
    with session:
        for name, folder in folders[1:]:
            report(f"{name} against {base}")
            first, own = session.time(folders[0][1], folder)
            if not rows or (rows[0][1].reason and not first.reason):
                rows[:1] = [(base, first)]
            rows.append((name, own))
    return rows


def _session(
    given: dict[str, Any],
    online: bool,
    rates: Sequence[float],
    requests: int | None,
    report: Callable[[str], None],
) -> TimingSession | OnlineSession:
    if not online:
        return TimingSession(validated(given, TimingProtocol, "options"), logs=LOGS)
    fields = {**given, "rates": tuple(rates), **({} if requests is None else {"requests": requests})}
    return OnlineSession(validated(fields, OnlineProtocol, "options"), logs=LOGS, progress=report)
