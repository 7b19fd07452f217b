"""Words of a paper's model, fitted to a model of another shape: what it has, steps of a curve, and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from methods.framework.allocation import removed_count
from sweeps.papers.paper_file import PaperFile, Word

if TYPE_CHECKING:
    from methods.framework.inventory import Inventory


@dataclass(frozen=True)
class Shape:
    """How many parts a model has.

    Args:
        experts: of the layer with the most.
        layers: feed-forward sub-layers with experts; of a dense model all that may be dropped.
        blocks: decoder layers.
    """

    experts: int
    layers: int
    blocks: int

    @classmethod
    def of(cls, inventory: Inventory) -> Shape:
        """Return that of a model."""
        experts = max((layer.experts for layer in inventory.layers), default=0)
        layers = inventory.moe_layers or inventory.droppable_layers
        return cls(experts, len(layers), len(inventory.layers))


def fitted_words(paper: PaperFile, key: str, shape: Shape) -> dict[str, Word]:
    """Return the words that differ on a model of that shape: its parts, steps at the same shares, and labels of what goes.

    Args:
        paper: the paper.
        key: of the paper's model that it stands for.
        shape: of the model.
    """
    theirs = paper.models[key].words
    found: dict[str, Word] = {}
    for part, steps in paper.steps.items():
        if part in theirs:
            own, count = getattr(shape, part), theirs[part]
            found[part] = own
            found |= {step: max(1, round(own * int(theirs[step]) / int(count))) for step in steps if step in theirs}
    for label, cut in paper.cuts.items():
        if label in theirs:
            own = getattr(shape, cut.part)
            found[label] = f"{cut.letter}{removed_count(float(theirs[cut.keep]), own)}/{own}"
    return found
