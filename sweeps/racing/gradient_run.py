"""RCO in a race: its passes cost tokens like evaluations, and its best plans are measured like others."""

from __future__ import annotations

from sweeps.gradient_search import GradientSearch, searched
from sweeps.option_slopes import OptionSlopes, Slopes
from sweeps.racing.track import Track
from sweeps.space.levels import Levels

VERIFIED = 6
"""Plans of each kind that are measured at the end."""


def run_rco(track: Track) -> None:
    """Descend on one window a step with what is left after the plans at the end are paid for, then measure these."""
    race = track.race
    windows_NS = track.resident.windows(race.search_windows(track.seed))
    oracle = OptionSlopes(track.planner, track.resident, windows_NS, race.anchors)
    left = track.budget - track.tokens - 2 * VERIFIED * track.cost

    def slopes_at(levels_A: Levels, step: int) -> Slopes:
        row = step % len(windows_NS)
        found = oracle.at(levels_A, slice(row, row + 1))
        track.spend(found.forwards * windows_NS.shape[1])
        return found

    cost = oracle.forwards * windows_NS.shape[1]
    search = GradientSearch(track.space, track.seed, max(1, int(left // cost)))
    for levels_A in searched(search, slopes_at, VERIFIED):
        track.value(levels_A)
