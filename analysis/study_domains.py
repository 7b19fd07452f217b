"""Calibration on one domain against calibration on all: changes by calibration domain and task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from analysis.inference import mean
from analysis.study_cells import contrast
from analysis.study_layout import DomainRun, Study


@dataclass(frozen=True)
class Matrix:
    """Changes of one model at one share, the mean over methods (each a mean over seeds)."""

    model: str
    keep: str
    tasks: tuple[str, ...]
    short: Mapping[str, str]
    runs: tuple[DomainRun, ...]

    @cached_property
    def domains(self) -> tuple[str, ...]:
        """Domains that something was calibrated on alone, in the order of the tasks that are theirs."""
        names = {run.domain for run in self.runs}
        order = {name: place for place, name in reversed(list(enumerate(self.short[task] for task in self.tasks)))}
        return tuple(sorted(names, key=lambda name: (order.get(name, len(order)), name)))

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Labels of the methods."""
        return tuple(sorted({run.alone.label for run in self.runs}))

    def of(self, method: str) -> Matrix:
        """Return the changes of one method."""
        return Matrix(
            self.model, self.keep, self.tasks, self.short, tuple(run for run in self.runs if run.alone.label == method)
        )

    def change(self, domain: str, task: str) -> float | None:
        """Return the mean change of ``task`` when calibrated on ``domain`` alone, as a fraction of 1."""
        changes = []
        for run in self.runs:
            alone, both = run.alone.cells.get(task), run.all.cells.get(task)
            if run.domain == domain and alone is not None and both is not None:
                changes.append(contrast(alone, both).value)
        return _mean(changes)

    def is_home(self, domain: str, task: str) -> bool:
        """Tell whether ``task`` measures ``domain``: it bears its name, or its name with a further word."""
        name = self.short[task]
        return name == domain or name.startswith(f"{domain}_")

    def home(self, domain: str) -> float | None:
        """Return the mean change on the domain's own tasks."""
        return self._over([task for task in self.tasks if self.is_home(domain, task)], domain)

    def away(self, domain: str) -> float | None:
        """Return the mean change on all other tasks."""
        return self._over([task for task in self.tasks if not self.is_home(domain, task)], domain)

    def overall(self) -> float | None:
        """Return the mean over domains of the change on tasks outside of them."""
        return _mean([change for domain in self.domains if (change := self.away(domain)) is not None])

    def _over(self, tasks: Sequence[str], domain: str) -> float | None:
        return _mean([change for task in tasks if (change := self.change(domain, task)) is not None])


def matrices(study: Study) -> list[Matrix]:
    """Return one matrix for each model and share with runs calibrated on one domain."""
    columns = {(table.model, table.keep): table.columns[1:] for table in study.tables}
    places = dict.fromkeys((run.model, run.keep) for run in study.domains)
    return [
        Matrix(
            model,
            keep,
            columns[model, keep],
            study.short,
            tuple(run for run in study.domains if (run.model, run.keep) == (model, keep)),
        )
        for model, keep in places
    ]


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None
