"""A method of your own: the experts that the router likes best stay, but every other layer is left alone.

    python examples/write_a_method.py
    python examples/write_a_method.py --keep 0.75 --out halved

To use it by name on the command line, list it in the entry points of your distribution's ``pyproject.toml``; it then shows up
in ``moebench methods``, and ``moebench check router_norm_even`` runs the laws on it:

    [project.entry-points."moebench.methods"]
    router_norm_even = "my_package.my_module:RouterNormEven"
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import ClassVar

from bench import compress
from methods import Inventory, LayerPlan, LayerwiseMethod, Stats, expert_counts, top


class RouterNormEven(LayerwiseMethod):
    """In layers of even index, keep the experts with the most router probability, summed over all tokens."""

    name: ClassVar[str] = "router_norm_even"
    title: ClassVar[str] = "Router probability, even layers"
    source: ClassVar[str] = "example"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})

    @property
    def needs(self) -> frozenset[str]:
        """The only statistic that ``decide_layer`` reads; calibration measures what is named here."""
        return frozenset({"router_probability"})

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        """Return which experts of ``layer`` stay; an empty plan keeps all."""
        if layer % 2:
            return LayerPlan()
        count = expert_counts(inventory, self.keep)[layer]
        return LayerPlan(experts=top(stats.layer("router_probability", layer), count, inventory.router.groups))


def main() -> None:
    """Let the method decide on a pocket model, write the result, and show which experts stayed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="pocket-mixtral", help="hub id, folder, or name of a pocket model")
    parser.add_argument("--keep", type=float, default=0.5, help="share of the experts that remains")
    parser.add_argument("--out", type=Path, default=Path("compressed-by-my-method"), help="folder to write to")
    parser.add_argument("--store", type=Path, default=Path("runs"), help="folder of cached statistics")
    given = parser.parse_args()

    method = RouterNormEven(keep=given.keep)
    calibration = {"sequences": 32, "length": 128}
    result = compress(given.model, method, out=given.out, calibration=calibration, store=given.store)
    for index, layer in enumerate(result.plan.layers):
        print(f"layer {index}: {'all experts stay' if layer.experts is None else f'experts {layer.experts} stay'}")
    print(f"{result.source_cost.bytes:,} bytes became {result.cost.bytes:,}, in {result.folder}")


if __name__ == "__main__":
    main()
