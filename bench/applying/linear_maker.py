"""Linear layers beside the routed experts that a plan makes sparse or stores in few bits, and what follows their scales.

That is attention, dense networks and shared experts of one decoder layer. What is not a matrix follows where AWQ scales inputs:
the norm before them is divided, as are rows of value and up, whose bias goes with them. Matrices are computed in float32 (float64
from float64).

Letters: O outputs of a matrix, X its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from bench.applying.moments import linear_moment
from bench.checkpoint.tensor_files import TORCH_DTYPES
from bench.experts.packing import packed, unpacked
from bench.experts.whole import ALL_PART_NAMES
from methods.framework.inside_fit import left_linears, packing_of
from methods.framework.inventory import Inventory, TensorEntry
from methods.framework.layer_plan import LayerPlan
from methods.framework.linears import NORMS, ROWS, Part, Site, all_sites, scaled_beside, scaled_rows
from methods.framework.stats import Stats
from methods.kernels.awq import folded_norm, input_scale
from methods.kernels.gptq import gptq
from methods.kernels.quantisation import Quantised, dequantised, round_to_nearest
from methods.kernels.sparsity import InputMoments, sparsified


class LinearMaker:
    """Makes the linear layers of one decoder layer, in any order.

    Args:
        plan: of the layer.
        index: its decoder layer in the source.
        inventory: the source.
        read: reads a tensor of the source.
        moments: statistics of the source, those named in ``plan.moments`` at least.
        expert_scale: what AWQ multiplies the columns of everything by that reads the inputs of the routed experts, where it
            scales them; None: ``know`` tells it.
    """

    def __init__(
        self,
        plan: LayerPlan,
        index: int,
        inventory: Inventory,
        read: Callable[[TensorEntry], Tensor],
        moments: Stats | None,
        expert_scale: Callable[[], Tensor] | None = None,
    ) -> None:
        """Compute nothing yet."""
        self._plan, self._index, self._inventory = plan, index, inventory
        self._read, self._moments, self._expert_scale = read, moments, expert_scale
        self._layer = inventory.layers[index]
        self._entries = {entry.role: entry for entry in self._layer.tensors if entry.expert is None}
        self._matrices = {entry.role: entry for entry in left_linears(plan, self._layer)}
        self._sites = {role: (part, site) for part, site in all_sites(self._layer) for role in site.roles}
        self._scales: dict[str, Tensor | None] = {}
        self._sparse: tuple[str, dict[str, Tensor]] | None = None
        self._rounded: tuple[str, Quantised] | None = None

    def know(self, scale_D: Tensor) -> None:
        """Take what AWQ multiplies the columns of everything by that reads the inputs of the routed experts."""
        self._expert_scale = lambda: scale_D

    @property
    def roles(self) -> frozenset[str]:
        """Roles of the linear layers."""
        return frozenset(self._matrices)

    @cached_property
    def changed(self) -> tuple[TensorEntry, ...]:
        """Tensors of the source that become others: all linear layers, then what follows their scales."""
        follows = scaled_beside(self._layer) if self._scales_all else ()
        kept = (role for role in follows if not (role == "norm.mlp" and self._plan.drop == "moe"))
        return (*self._matrices.values(), *(self._entries[role] for role in kept))

    def tensor(self, role: str) -> Tensor:
        """Return what is stored under ``role``, in the type of the checkpoint: a whole tensor, or a part of a matrix in few bits.

        Raises:
            StatsError: moments are missing, of another model, or not finite.
        """
        matrix, _, part = role.rpartition(".")
        if matrix in self._matrices:
            return self._packed(matrix)[ALL_PART_NAMES[part]]
        values = self._matrix(role) if role in self._matrices else self._following(role)
        return values.to(TORCH_DTYPES[self._entries[role].dtype])

    def value(self, role: str) -> Tensor:
        """Return what is stored of a tensor of the source as the values that it stands for."""
        if role not in self._matrices or not self._packs:
            return self.tensor(role)
        packing = packing_of(self._plan)
        assert packing is not None
        codes = unpacked(self._packed(role), *packing)
        return dequantised(codes, codes.scale_OG.dtype)

    def readers(self) -> tuple[list[Tensor], list[Tensor], list[float]]:
        """Return matrices of shared experts that read the inputs of the routed ones, one stack, with its moments and tokens.

        They take part in the choice of the scale of these inputs where they are stored in few bits too.
        """
        site = next((site for _, site in all_sites(self._layer) if site.name == "network"), None)
        if site is None or not self._scales_all:
            return [], [], []
        stack_OX = torch.cat([self._before(role) for role in site.roles])
        assert self._moments is not None
        return [stack_OX], [self._gram("network", site, stack_OX)], [float(self._moments.tokens)]

    @property
    def _packs(self) -> bool:
        return self._plan.bits is not None and self._plan.bits.scope == "all"

    @property
    def _scales_all(self) -> bool:
        """Whether AWQ scales the inputs of linear layers beside the experts."""
        return self._packs and self._plan.bits is not None and self._plan.bits.kernel == "awq"

    @property
    def _follows_experts(self) -> bool:
        """Whether AWQ scales the inputs of the routed experts, which shared ones read as well."""
        plan = self._plan
        return self._layer.mlp == "moe" and plan.drop == "none" and plan.bits is not None and plan.bits.kernel == "awq"

    def _wide(self, role: str) -> Tensor:
        value = self._read(self._entries[role])
        return value if value.dtype == torch.float64 else value.float()

    def _gram(self, part: Part, site: Site, weight: Tensor) -> Tensor:
        flat = linear_moment(self._moments, self._inventory, f"{part}_gram", self._index, site.gram)
        return flat.view(site.inputs, site.inputs).to(weight.device)

    def _row(self, name: str, site: Site, weight: Tensor) -> Tensor:
        return linear_moment(self._moments, self._inventory, name, self._index, site.row).to(weight.device)

    def _zeroed(self, role: str) -> Tensor:
        """Return a matrix with its zeros; those of the site that was asked for last are kept."""
        rule = self._plan.sparsity
        if rule is None or rule.scope != "all":
            return self._wide(role)
        part, site = self._sites[role]
        if self._sparse is None or self._sparse[0] != site.name:
            self._sparse = None  # frees the ones before
            stack_OX = torch.cat([self._wide(one) for one in site.roles])
            inputs = None
            if rule.kernel == "wanda":
                inputs = InputMoments(square_X=self._row(f"{part}_square", site, stack_OX))
            elif rule.kernel == "sparsegpt":
                inputs = InputMoments(gram_XX=self._gram(part, site, stack_OX))
            made = sparsified(stack_OX, rule, inputs).split([self._entries[one].shape[0] for one in site.roles])
            self._sparse = site.name, dict(zip(site.roles, made, strict=True))
        return self._sparse[1][role]

    def _before(self, role: str) -> Tensor:
        """Return a matrix as it is before its inputs are scaled: with its zeros, and its rows divided by a scale after them."""
        weight_OX = self._zeroed(role)
        divisor_O = self._row_divisor(role)
        return weight_OX if divisor_O is None else weight_OX / divisor_O[:, None]

    def _row_divisor(self, role: str) -> Tensor | None:
        """Return the scale that rows of a matrix undo; None where there is none."""
        if not self._scales_all:
            return None
        site = next((s for _, s in all_sites(self._layer) if ROWS.get(s.name) == role), None)
        return None if site is None else self._scale(site)

    def _scale(self, site: Site) -> Tensor | None:
        """Return what the columns of the matrices that read at ``site`` are multiplied by, [X]; None: they stay."""
        if site.name == "network" and self._follows_experts:
            assert self._expert_scale is not None
            return self._expert_scale()
        if not self._scales_all:
            return None
        if site.name not in self._scales:
            self._scales[site.name] = self._search(site)
        return self._scales[site.name]

    def _search(self, site: Site) -> Tensor | None:
        rule = self._plan.bits
        assert rule is not None
        norm = NORMS.get(site.name)
        if norm is None and scaled_rows(self._layer, site) is None:
            return None
        part, _ = self._sites[site.roles[0]]
        # One stack, since all of them read the same inputs.
        stack_OX = torch.cat([self._before(role) for role in site.roles])
        magnitude_X = self._row(f"{part}_magnitude", site, stack_OX)
        dtype = TORCH_DTYPES[self._entries[site.roles[0]].dtype]
        gram_XX = self._gram(part, site, stack_OX)
        best_X = input_scale([stack_OX], [gram_XX], magnitude_X, rule.bits, rule.group, [1.0], dtype, rule.symmetric)
        return best_X if norm is None else folded_norm(self._read(self._entries[norm]), best_X)[1]

    def _matrix(self, role: str) -> Tensor:
        """Return a matrix with its zeros and scales, before it is rounded."""
        weight_OX = self._before(role)
        scale_X = self._scale(self._sites[role][1])
        return weight_OX if scale_X is None else weight_OX * scale_X.to(weight_OX)

    def _packed(self, role: str) -> dict[str, Tensor]:
        """Return the tensors of a matrix in few bits by the names of the format; those of the last site are kept as integers."""
        rule = self._plan.bits
        assert rule is not None
        part, site = self._sites[role]
        if self._rounded is None or self._rounded[0] != site.name:
            self._rounded = None
            # One stack, whose moments are factorised once.
            stack_OX = torch.cat([self._matrix(one) for one in site.roles])
            dtype = TORCH_DTYPES[self._entries[role].dtype]
            if rule.kernel == "gptq":
                zero_OX = stack_OX == 0 if self._plan.sparsity is not None else None
                gram_XX = self._gram(part, site, stack_OX)
                codes = gptq(stack_OX, rule.bits, rule.group, gram_XX, dtype, zero_OX, rule.symmetric, rule.act_order)
            else:
                codes = round_to_nearest(stack_OX, rule.bits, rule.group, dtype, rule.symmetric)
            self._rounded = site.name, codes
        start = 0
        for one in site.roles:
            stop = start + self._entries[one].shape[0]
            if one == role:
                return packed(self._rounded[1].rows(slice(start, stop)), rule.bits)
            start = stop
        raise KeyError(role)

    def _following(self, role: str) -> Tensor:
        """Return a norm, or the bias of a matrix, divided by the scale that it undoes."""
        value = self._wide(role)
        matrix = role.removesuffix("_bias")
        if matrix in self._matrices:
            divisor_O = self._row_divisor(matrix)
        else:
            divisor_O = next((self._scale(s) for _, s in all_sites(self._layer) if NORMS.get(s.name) == role), None)
        return value if divisor_O is None else value / divisor_O.to(value)
