"""A plan in words: what becomes of which layers, for people who read the card of a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from methods.framework.inside import Bases, LowRank, Quantisation, Sparsity
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan

_MERGED = {
    "mean": "by weighted averages",
    "aligned": "by weighted averages after their channels were aligned",
    "svd": "by a sum that is projected on the leading singular vectors",
}
_ROUTED = {
    "slice": "the router keeps the rows of the experts that stay",
    "mean": "the router's rows of a group are averaged",
    "map": "the router keeps its rows, several of which lead to one expert",
}
_FACTORED = {"svd": "singular value decomposition", "whitened": "whitened singular value decomposition"}
_ZEROED = {"magnitude": "by magnitude", "wanda": "by Wanda", "moe_pruner": "by MoE-Pruner", "sparsegpt": "by SparseGPT"}
_ROUNDED = {"rtn": "rounded to the nearest", "gptq": "by GPTQ", "awq": "by AWQ"}
_REACH = {"experts": "the routed experts", "all": "the routed experts and the other linear layers"}


def plan_words(plan: Plan) -> list[str]:
    """Return a sentence for each run of successive layers that the plan treats alike, in the source's numbers of layers."""
    told: list[tuple[int, int, str]] = []
    for index, layer in enumerate(plan.layers):
        words = layer_words(layer)
        if told and told[-1][2] == words:
            told[-1] = (told[-1][0], index, words)
        else:
            told.append((index, index, words))
    return [f"{_layers(first, last)}: {words}." for first, last, words in told]


def layer_words(layer: LayerPlan) -> str:
    """Return what becomes of a layer, as one phrase."""
    if layer.drop == "block":
        return "dropped as a whole"
    parts = ["its MoE sub-layer is dropped with the norm before it"] if layer.drop == "moe" else []
    parts += [*_selected(layer), *_inside(layer)]
    return "; ".join(parts) or "as in the source"


def _selected(layer: LayerPlan) -> Iterable[str]:
    if layer.experts is not None:
        yield _count(len(layer.experts), "expert stays", "experts stay")
        if layer.merges:
            kernels = dict.fromkeys(_MERGED[merge.kernel] for merge in layer.merges)
            members = _span([len(merge.members) for merge in layer.merges])
            verb = "is" if len(layer.merges) == 1 else "are"
            yield f"{len(layer.merges)} of them {verb} made of {members} experts each, {' or '.join(kernels)}"
        if layer.constants:
            yield _count(len(layer.constants), "expert is", "experts are") + " replaced by their mean output"
        yield _ROUTED[layer.router]
    if layer.top_k is not None:
        yield f"a token takes {_count(layer.top_k, 'expert', 'experts')}"


def _inside(layer: LayerPlan) -> Iterable[str]:
    if layer.channels is not None:
        yield f"each expert keeps {_span([len(kept) for kept in layer.channels])} hidden channels"
    if layer.rank is not None:
        yield _factored(layer.rank)
    if layer.bases is not None:
        yield _mixed(layer.bases)
    if layer.sparsity is not None:
        yield _zeroed(layer.sparsity)
    if layer.bits is not None:
        yield _rounded(layer.bits)


def _factored(rank: LowRank) -> str:
    ranks = [one for expert in rank.ranks for one in expert if one]
    what = "the difference of each expert to a base that all share" if rank.base else "each expert"
    if not ranks:
        return "no matrix is factored"
    return f"the matrices of {what} are two factors of rank {_span(ranks)} ({_FACTORED[rank.kernel]})"


def _mixed(bases: Bases) -> str:
    return f"gate and up of each expert are mixtures of {bases.count} bases of rank {bases.rank} that the layer shares"


def _zeroed(sparsity: Sparsity) -> str:
    pattern = "" if sparsity.pattern == "unstructured" else f" in the pattern {sparsity.pattern}"
    share = f"{100 * sparsity.share:g} %"
    return f"{share} of the weights of {_REACH[sparsity.scope]} are zero{pattern}, chosen {_ZEROED[sparsity.kernel]}"


def _rounded(bits: Quantisation) -> str:
    zero = "" if bits.symmetric else ", with zero points"
    how = f"in groups of {bits.group}{zero}"
    return f"{_REACH[bits.scope]} are stored in {bits.bits} bits, {_ROUNDED[bits.kernel]}, {how}"


def _layers(first: int, last: int) -> str:
    return f"Layer {first}" if first == last else f"Layers {first} to {last}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
