"""``moebench cost``: what a plan's checkpoint costs, beside the source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.options import Model, RevisionOption
from bench.commands.plan_file import read_plan
from bench.commands.printing import print_cost
from bench.library.opening import open_checkpoint


def cost(
    model: Model,
    plan_file: Annotated[Path, typer.Argument(help="plan, as `moebench plan` or a sweep wrote it")],
    revision: RevisionOption = None,
) -> None:
    """Print the cost of a plan; no weight is read."""
    print_cost(open_checkpoint(model, revision).inventory, read_plan(plan_file))
