"""``moebench time``: pairs of checkpoints, offline at several batch sizes or as servers at several request rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.checkpoint.source import local_folder
from bench.records.record import Timing
from bench.settings.run_settings import TimingConfig
from bench.settings.strict import validated
from bench.timing.offline import TimingSession
from bench.timing.online import OnlineSession
from bench.timing.protocol import OnlineProtocol, TimingProtocol
from bench.timing.table import Rows
from methods.framework.errors import ConfigError

LOGS = Path("logs")


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
        settings: fields of ``TimingConfig``, those that are None left at their defaults.
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
    config = validated(given, TimingConfig, "options").model_dump(exclude={"enabled"})
    folders = [(name, local_folder(name)[0]) for name in (base, *compressed)]
    rows: list[tuple[str, Timing]] = []
    with _session(config, given, online, rates, requests, report) as session:
        for name, folder in folders[1:]:
            report(f"{name} against {base}")
            first, own = session.time(folders[0][1], folder)
            if not rows or (rows[0][1].reason and not first.reason):
                rows[:1] = [(base, first)]
            rows.append((name, own))
    return rows


def _session(
    config: dict[str, Any],
    given: dict[str, Any],
    online: bool,
    rates: Sequence[float],
    requests: int | None,
    report: Callable[[str], None],
) -> TimingSession | OnlineSession:
    if not online:
        return TimingSession(TimingProtocol(**config), logs=LOGS)
    shared = ("repeats", "prompt", "generate", "dtype", "threads", "residency", "kv_cache_bytes")
    fields: dict[str, Any] = {name: given[name] for name in shared if name in given}
    if requests is not None:
        fields["requests"] = requests
    protocol = OnlineProtocol(rates=tuple(rates), **fields)
    return OnlineSession(protocol, logs=LOGS, progress=report)
