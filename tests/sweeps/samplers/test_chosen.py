"""What proposes the next trial."""

from __future__ import annotations

import optuna
import pytest

from sweeps.samplers.chosen import sampler
from sweeps.samplers.settings import Sampler
from sweeps.space.dimension import Knots, distributions


@pytest.mark.parametrize("name", ["tpe", "nsga2", "cmaes", "random"])
def test_a_draw_depends_on_seed_trial_and_worker_alone(name: str) -> None:
    def draw(seed: int, draws: int, worker: int) -> float:
        own = sampler(Sampler.model_validate({"name": name, "seed": seed}), draws, worker)
        space = distributions({"keep": Knots(knots=1, low=0.1, high=0.9)})
        return float(optuna.create_study(sampler=own).ask(space).params["keep.0"])

    cases = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert [draw(*case) for case in cases] == [draw(*case) for case in cases]
    assert len({draw(*case) for case in cases}) == len(cases)
