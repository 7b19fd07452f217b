"""Knobs drawn at random."""

from __future__ import annotations

import numpy as np
import pytest

from methods.framework.knob_space import draw
from methods.registry import method_class, names


@pytest.mark.parametrize("name", names())
def test_draw_depends_on_the_generator_alone(name: str) -> None:
    kind = method_class(name)
    first = [draw(kind, np.random.default_rng(5)) for _ in range(2)]
    assert first[0] == first[1]
    assert len({draw(kind, np.random.default_rng(seed)).model_dump_json() for seed in range(8)}) > 1
