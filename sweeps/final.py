"""The choice among the best trials of a search, on text that it has not seen, and what is reported of it on a third text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.store.store import Store, write_json
from methods.framework.errors import RecordError
from methods.framework.outside import read_bytes
from methods.framework.plan import Plan
from sweeps.budget import Limits
from sweeps.candidate import Candidate
from sweeps.objective import TextObjective
from sweeps.outcome import CHOICE, TrialRow, best_rows
from sweeps.resident import Resident, Windows
from sweeps.sweep_config import SweepConfig

if TYPE_CHECKING:
    from sweeps.losses import Reals


def choose(config: SweepConfig, rows: Sequence[TrialRow], resident: Resident, store: Path) -> None:
    """Compare the best trials on the windows for that, and write ``choice.json`` beside the study.

    It holds the value of each on these windows, the trial that is best there and, where the sweep asks for a report, the
    objective of the choice, of the first start and of the uncompressed model on a third text. Differences are paired window by
    window; their 95 % intervals are Student's, with windows as independent draws.

    Args:
        config: a sweep with one objective, on text.
        rows: its trials.
        resident: the model and its texts.
        store: folder of the store.
    """
    (label, objective), windows = next(iter(config.labelled.items())), config.final.choose
    if windows is None or not isinstance(objective, TextObjective):
        return
    sign = -1.0 if objective.direction == "maximize" else 1.0
    best = best_rows(rows, label, sign, config.final.top)
    if not best:
        return
    plans = {row.number: _plan(store, row) for row in best}
    choosing = _Reader(objective, windows, resident)
    values = {row.number: choosing.value(plans[row.number]) for row in best}
    chosen = min(best, key=lambda row: (sign * values[row.number], row.number))
    listed = [
        {"trial": row.number, "plan": row.plan, "search": row.scores[label], "choice": values[row.number]}
        for row in best
    ]
    document: dict[str, Any] = {"objective": label, "windows": windows.model_dump(mode="json"), "trials": listed}
    document |= {"chosen": chosen.number, "plan": chosen.plan}
    if config.final.report is not None:
        start = next((row for row in rows if row.state == "complete"), chosen)
        document["report"] = _report(objective, config.final.report, resident, plans[chosen.number], start, store)
    write_json(config.folder(store) / CHOICE, document)


def _report(
    objective: TextObjective, windows: Windows, resident: Resident, chosen: Plan, start: TrialRow, store: Path
) -> dict[str, Any]:
    from scipy.stats import ttest_rel

    reader = _Reader(objective, windows, resident)
    means = {
        "chosen": reader.by_window(chosen),
        f"trial {start.number}": reader.by_window(_plan(store, start)),
        "base": reader.by_window(Plan.identity(resident.inventory)),
    }
    ours = means.pop("chosen")
    report: dict[str, Any] = {
        "windows": windows.model_dump(mode="json"),
        "n": len(ours),
        "chosen": objective.value(float(ours.mean())),
    }
    for name, others in means.items():
        interval = ttest_rel(ours, others).confidence_interval() if len(ours) > 1 and (ours != others).any() else None
        report[name] = {
            "value": objective.value(float(others.mean())),
            "difference": float((ours - others).mean()),
            "interval": None if interval is None else [float(interval.low), float(interval.high)],
        }
    return report


class _Reader:
    """One objective on one text, for plans of the resident model."""

    def __init__(self, objective: TextObjective, windows: Windows, resident: Resident) -> None:
        self._objective, self._resident = objective.on(windows), resident
        self._limits = Limits(resident.inventory, ())
        self._measured = self._objective.by_window(resident)

    def by_window(self, plan: Plan) -> Reals:
        """Return the value of each window."""
        from bench.applying.in_memory import realised

        resident = self._resident
        with realised(resident.model, resident.inventory, plan, resident.stats, resident.made) as model:
            return self._measured(Candidate(plan, self._limits.sizes(plan), self._limits.source, model), slice(None))

    def value(self, plan: Plan) -> float:
        """Return the objective on the whole text."""
        return self._objective.value(float(self.by_window(plan).mean()))


def _plan(store: Path, row: TrialRow) -> Plan:
    return Plan.loads(read_bytes(Store(store).plans / f"{row.plan}.json", RecordError))


def told(choice: Mapping[str, Any]) -> list[str]:
    """Return the choice for people, in lines."""
    lines = [f"chosen among {len(choice['trials'])} best trials on other text: trial {choice['chosen']}"]
    report = choice.get("report")
    if report is not None:
        lines.append(f"on a third text ({report['n']} windows): {choice['objective']} {report['chosen']:.5g}")
        for name, one in report.items():
            if isinstance(one, Mapping) and "difference" in one:
                interval = one["interval"]
                range_ = "" if interval is None else f" [{interval[0]:.3g}, {interval[1]:.3g}]"
                lines.append(f"  {name} {one['value']:.5g}, difference {one['difference']:.3g}{range_}")
    return lines
