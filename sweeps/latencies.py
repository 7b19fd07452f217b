"""Measured times of every option of every layer, as sizes that add up like bytes.

The uncompressed model is timed once, layer by layer within its own forward passes; each option is timed in turn with the block
whose place it takes, and counts as that block's time in the model multiplied by the median ratio. So what loads the machine for
a while meets both sides.

Letters: Z phases (prefill, decode).
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.calibration.code_digest import module_digest
from bench.records.environment import processor
from bench.store.store import Store, digest_of
from bench.store.versions import versions
from methods.framework.layer_plan import LayerPlan
from sweeps.latency import Latency
from sweeps.resident import Resident
from sweeps.space.anchors import anchors, spread
from sweeps.space.levels import LevelSpace, Reals
from sweeps.stopwatch import PHASES, Profile, Profiler
from sweeps.stored_blocks import stored_block

if TYPE_CHECKING:
    from torch import Tensor

    from sweeps.objective import Objective
    from sweeps.space.menu import Menu

KIND = "latencies"
"""Folder of the cache."""
TOGETHER = 64
"""Combinations of a unit's axes that are all timed; of units with more, ``ALONG`` levels of each axis alone, added up."""
ALONG = 4


class Latencies:
    """Times of the layers of one model, measured on first use and kept under all that they depend on."""

    def __init__(self, resident: Resident, latency: Latency, prompts_BP: Tensor, store: Store) -> None:
        """Prepare.

        Args:
            resident: the model.
            latency: what is measured.
            prompts_BP: token ids.
            store: keeps the answers.
        """
        self.resident, self.latency, self._prompts, self._store = resident, latency, prompts_BP, store
        model = resident.model
        cuda = model.device.type == "cuda"
        self._key = {
            "model": resident.identity["model"],
            "tokens": digest_of(prompts_BP.tolist()),
            "latency": latency.model_dump(mode="json"),
            "dtype": str(model.dtype),
            "device": torch.cuda.get_device_name(model.device) if cuda else processor(),
            "threads": torch.get_num_threads(),
            "experts": str(model.config._experts_implementation),
            "libraries": versions(),
            "code": module_digest((__name__,), packages=("bench", "methods", "sweeps")),
        }
        self._spaces: dict[Menu, LevelSpace] = {}

    @property
    def identity(self) -> dict[str, Any]:
        """What a study is bound to: where the times are from, and a digest of those of the uncompressed model."""
        seen = {name: self._key[name] for name in ("device", "threads")}
        return {**seen, "measured": digest_of([self._key, asdict(self.profile)])[:16]}

    @cached_property
    def profile(self) -> Profile:
        """Times of the uncompressed model."""
        key = {**self._key, "what": "profile"}
        with self._alone():
            known = self._store.recall(KIND, key)
            if known is None:
                known = asdict(self._profiler.profile())
                self._store.remember(KIND, key, known)
        return Profile(**known)

    @cached_property
    def source(self) -> dict[str, int]:
        """Microseconds of the uncompressed model."""
        whole_Z = np.array([self.profile.whole[phase] for phase in PHASES])
        return {name: round(float(value)) for name, value in self._microseconds(whole_Z).items()}

    def added(self, menu: Menu) -> LevelSpace:
        """Return the space of ``menu`` with microseconds beside its other sizes; what was not timed yet is timed now."""
        if menu not in self._spaces:
            self._spaces[menu] = self._timed(menu)
        return self._spaces[menu]

    def plan(self, layers: Sequence[LayerPlan]) -> dict[str, float]:
        """Return the milliseconds that are predicted of a plan, by phase; layers that no one asked for are timed now.

        Args:
            layers: what becomes of each decoder layer.
        """
        total_Z = np.array([self.profile.whole[phase] for phase in PHASES])
        for index, own in enumerate(layers):
            total_Z = total_Z + self._layer(index, [own])[0] - self._layer(index, [LayerPlan()])[0]
        return dict(zip(PHASES, map(float, total_Z), strict=True))

    def _timed(self, menu: Menu) -> LevelSpace:
        space = menu.space
        rest_Z = np.array([self.profile.whole[phase] for phase in PHASES])
        grids: list[Reals] = []
        taken: set[int] = set()
        for unit in range(len(space.units)):
            layer, known = self._unit(menu, unit)
            shape = [int(space.highest[axis]) + 1 for axis in space.members[unit]]
            grid = np.full((*shape, len(PHASES)), np.inf)
            if len(known) < len(space.combinations(unit)):
                for place in range(len(PHASES)):
                    line = {levels: float(time_Z[place]) for levels, time_Z in known.items()}
                    grid[..., place] = np.maximum(spread(line, shape, self._top(space, unit)), 0.0)
            for levels, time_Z in known.items():
                grid[levels] = time_Z
            if layer in taken:  # a further matrix: what it saves, counted from the smallest
                least_Z = grid[np.isfinite(grid).all(axis=-1)].min(axis=0)
                grid, rest_Z = grid - least_Z, rest_Z + least_Z
            else:
                rest_Z = rest_Z - self._layer(layer, [LayerPlan()])[0]
            taken.add(layer)
            grid[~np.isfinite(space.sizes[next(iter(space.sizes))][unit])] = np.inf
            grids.append(grid)
        for layer, plan in enumerate(menu.unchosen):
            if layer not in taken and plan != LayerPlan():
                rest_Z = rest_Z + self._layer(layer, [plan])[0] - self._layer(layer, [LayerPlan()])[0]
        return self._with(space, grids, rest_Z)

    def _with(self, space: LevelSpace, grids: Sequence[Reals], rest_Z: Reals) -> LevelSpace:
        """Return ``space`` with whole microseconds."""
        own = [self._microseconds(grid) for grid in grids]
        rest = {name: float(np.round(value)) for name, value in self._microseconds(rest_Z).items()}
        sizes = {name: tuple(np.round(grid[name]) for grid in own) for name in rest}
        return replace(space, sizes={**space.sizes, **sizes}, rest={**space.rest, **rest})

    def _microseconds(self, times_Z: Reals) -> dict[str, Any]:
        """Return the quantities of budgets from milliseconds of both phases, [..., Z]."""
        prefill, decode = 1000.0 * times_Z[..., 0], 1000.0 * times_Z[..., 1]
        return {
            "microseconds": prefill + self.latency.generate * decode,
            "prefill_microseconds": prefill,
            "decode_microseconds": decode,
        }

    def _unit(self, menu: Menu, unit: int) -> tuple[int, dict[tuple[int, ...], Reals]]:
        """Return the layer of a unit, and milliseconds [Z] of its combinations of levels, or of a few of them.

        Of a unit that is a further matrix of its layer, by how much the layer changes when that alone is factored.
        """
        space = menu.space
        combinations = space.combinations(unit)
        if len(combinations) > TOGETHER:
            shape = [int(space.highest[axis]) + 1 for axis in space.members[unit]]
            possible = set(combinations)
            few = anchors(shape, [extent - 1 for extent in shape], ALONG)
            combinations = [levels for levels in few if levels in possible]
        found = [menu.unit_plan(unit, levels) for levels in combinations]
        layer = found[0][0]
        times = self._layer(layer, [plan for _, plan in found])
        before = [other for other in range(unit) if menu.unit_plan(other, self._top(space, other))[0] == layer]
        if before:
            whole = found[0][1].model_copy(update={"rank": None})
            base_Z = self._layer(layer, [whole])[0]
            times = [time_Z - base_Z for time_Z in times]
        return layer, dict(zip(combinations, times, strict=True))

    @staticmethod
    def _top(space: LevelSpace, unit: int) -> tuple[int, ...]:
        return tuple(int(space.highest[axis]) for axis in space.members[unit])

    def _layer(self, index: int, plans: Sequence[LayerPlan]) -> list[Reals]:
        """Return the milliseconds of a decoder layer, [Z], under each of several plans."""
        parts = (self.profile.layers, self.profile.blocks, self.profile.norms)
        own, block, norm = (np.array([part[index][phase] for phase in PHASES]) for part in parts)
        ratios = self._ratios(index, [plan for plan in plans if plan.drop == "none" and plan != LayerPlan()])
        found: list[Reals] = []
        for plan in plans:
            if plan.drop == "block":
                found.append(np.zeros(len(PHASES)))
            elif plan.drop == "moe":
                found.append(own - block - norm)
            elif plan == LayerPlan():
                found.append(own)
            else:
                found.append(own - block + block * ratios[plan.model_dump_json(exclude_defaults=True)])
        return found

    def _ratios(self, index: int, plans: Sequence[LayerPlan]) -> dict[str, Reals]:
        """Return the time of a layer's block under each plan as a share of the source's, [Z], by the plan's text."""
        texts = {plan.model_dump_json(exclude_defaults=True): plan for plan in plans}
        known = {text: self._store.recall(KIND, self._cell(index, text)) for text in texts}
        if any(value is None for value in known.values()):
            with self._alone():
                inputs = self._profiler.inputs(index)
                for text, plan in texts.items():
                    known[text] = known[text] or self._store.recall(KIND, self._cell(index, text))
                    if known[text] is None:
                        block = stored_block(self.resident.model, self.resident.inventory, index, plan)
                        intervals = self._profiler.ratios(index, block, inputs)
                        known[text] = {phase: one.model_dump(mode="json") for phase, one in intervals.items()}
                        self._store.remember(KIND, self._cell(index, text), known[text] or {})
        return {text: np.array([(value or {})[phase]["median"] for phase in PHASES]) for text, value in known.items()}

    def _cell(self, index: int, text: str) -> dict[str, Any]:
        return {**self._key, "layer": index, "plan": text}

    @cached_property
    def _profiler(self) -> Profiler:
        return Profiler(self.resident.model, self.resident.inventory, self._prompts, self.latency)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time measure, since several on one machine would slow each other."""
        folder = self._store.cache / KIND
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def prompts(resident: Resident, objectives: Mapping[str, Objective], latency: Latency) -> Tensor:
    """Return the prompts whose time is measured, [B, P]: the text of the first objective that has one, repeated as needed.

    Args:
        resident: the model and its texts.
        objectives: by label.
        latency: how many and how long.
    """
    text = next((one.held_out for one in objectives.values() if one.held_out is not None), None)
    ids = resident.calibration if text is None else resident.windows(text)
    if not ids.numel():
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(resident.inventory.vocab, (latency.batch, latency.prompt), generator=draw)
    count = latency.batch * latency.prompt
    flat = ids.flatten()
    return flat.repeat(-(-count // flat.numel()))[:count].view(latency.batch, latency.prompt)
