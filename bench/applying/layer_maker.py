"""Experts that a plan changes inside, as they are stored: channels cut, factored, with a base, sparse, in few bits.

One computed expert is in memory at a time; what a layer's experts share is computed once for the layer. Matrices are computed
in float32 (float64 from float64).

Letters: E experts that stay, D hidden size, F expert width, M and N rows and columns of a matrix, X inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from bench.applying.input_moments import gram_of, on_device_of, root_of, sliced, square_of
from bench.applying.linear_maker import LinearMaker
from bench.applying.moments import ExpertMoments, entry_fisher, expert_moments, gram, layer_moment, used_experts
from bench.experts.lazy import Chained, Lazy, lazily
from bench.experts.packing import packed
from bench.experts.whole import ALL_PART_NAMES, Stored, whole_expert
from methods.framework.forms import COLUMNS, LEFT, MIX, RIGHT, SHARED_PREFIX
from methods.framework.inside_fit import form_of, stays
from methods.framework.inventory import EXPERT_ROLES, ExpertForm, Inventory
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.stats import Stats
from methods.kernels.awq import channel_scale, folded_norm, input_scale
from methods.kernels.entry_mean import EntryMean
from methods.kernels.gptq import gptq
from methods.kernels.low_rank import base_columns, factored
from methods.kernels.merging import ExpertMatrices, align, merged
from methods.kernels.quantisation import Quantised, round_to_nearest
from methods.kernels.shared_bases import FittedBases, fit_bases
from methods.kernels.shrinkage import ENOUGH, pooled, shrunk
from methods.kernels.sparsity import InputMoments, sparsified

Read = Callable[[int], ExpertMatrices]
"""Returns the three matrices of an expert of the source, in any floating type."""


class LayerMaker:
    """Makes the experts of one layer.

    Args:
        plan: of the layer.
        index: its decoder layer in the source.
        inventory: the source.
        read: reads an expert of that layer.
        moments: statistics of the source, those named in ``plan.moments`` at least.
        dtypes: types in which gate, up and down are stored.
        norm: reads the weight of the norm before the experts, shape (D,); only AWQ asks for it.
        beside: makes the layer's other linear layers, some of which may share AWQ's scale of the inputs; None leaves them.
    """

    def __init__(
        self,
        plan: LayerPlan,
        index: int,
        inventory: Inventory,
        read: Read,
        moments: Stats | None,
        dtypes: Sequence[torch.dtype],
        norm: Callable[[], Tensor],
        beside: Callable[[], LinearMaker] | None = None,
    ) -> None:
        """Compute nothing yet."""
        self._beside = beside
        self._plan, self._index, self._inventory = plan, index, inventory
        self._read, self._moments, self._dtypes, self._norm = read, moments, tuple(dtypes), norm
        self._layer = inventory.layers[index]
        self._kept = stays(plan, self._layer)
        self._merges = {merge.into: merge for merge in plan.merges}
        self._last: tuple[int, Stored] | None = None
        self._channel_scales: dict[int, Tensor] = {}

    def stored(self, expert: int) -> Stored:
        """Return what is stored of ``expert`` (a source index), by role, in the types of the checkpoint.

        Raises:
            StatsError: ``moments`` are missing, of another model, or not finite.
        """
        if self._last is None or self._last[0] != expert:
            self._last = None  # frees the one before
            self._last = expert, self._store(expert)
        return self._last[1]

    def whole(self, expert: int) -> ExpertMatrices:
        """Return the matrices that what is stored of ``expert`` stands for, in float32 or float64."""
        stored = self.stored(expert)
        form = form_of(self._plan, self._layer) or ExpertForm()
        return whole_expert(stored, self.shared, form)

    def decisive(self, expert: int) -> tuple[object, ...]:
        """Return what the matrices of ``expert`` depend on beside the source: its ranks where they are made of it alone.

        Factors of an expert with few tokens depend on those that stay beside it, since its moments are shrunk towards theirs.
        """
        rank, enough_E = self._plan.rank, self._enough_E
        if rank is None or enough_E is None or not enough_E[expert]:
            return (self._plan_text,)
        return (rank.kernel, rank.ranks[self._kept.index(expert)])

    @cached_property
    def _plan_text(self) -> str:
        return self._plan.model_dump_json()

    @cached_property
    def _enough_E(self) -> list[bool] | None:
        """Whether an expert's factors are made of it and its own moments alone; None where no expert's are."""
        rank = self._plan.rank
        others = self._plan.model_copy(update={"rank": None, "experts": None, "top_k": None})
        if rank is None or rank.base is not None or others.inside or others.merges:
            return None
        if rank.kernel == "svd":
            return [True] * self._layer.experts
        enough = ENOUGH * next(self._layer.with_role("expert.gate")).shape[1]
        tokens_E = layer_moment(self._moments, self._inventory, "routed_tokens", self._index)
        return [bool(tokens >= enough) for tokens in tokens_E.tolist()]

    @cached_property
    def shared(self) -> Stored:
        """What all experts of the layer share, by role, in the types of the checkpoint."""
        if self._plan.bases is not None:
            names = [SHARED_PREFIX + role.partition(".")[2] for role in EXPERT_ROLES[:2]]
            return {n: fit.bases_CRN.to(t) for n, fit, t in zip(names, self._fits, self._dtypes, strict=False)}
        if self._base is None:
            return {}
        found: Stored = {}
        for (base_MN, columns_C), role, dtype in zip(self._base, EXPERT_ROLES, self._dtypes, strict=True):
            name = SHARED_PREFIX + role.partition(".")[2]
            whole = len(columns_C) == base_MN.shape[1]
            found[name] = (base_MN if whole else base_MN[:, columns_C]).contiguous().to(dtype)
            if not whole:
                found[f"{name}.{COLUMNS}"] = columns_C.to(torch.int32)
        return found

    @cached_property
    def input_scale_D(self) -> Tensor:
        """What the columns of gate, up and everything else that reads the layer's norm are multiplied by (AWQ)."""
        bits = self._plan.bits
        assert bits is not None
        norm_D = self._norm()
        magnitude_D = layer_moment(self._moments, self._inventory, "input_magnitude", self._index).to(norm_D.device)
        members = bits.members or self._kept
        readers = ([], [], []) if self._beside is None else self._beside().readers()
        both = Chained(lazily(self._gate_up, members), readers[0])
        grams = Chained(lazily(self._input_gram, members), readers[1])
        tokens = [*(self._tokens(expert) for expert in members), *readers[2]]
        best_D = input_scale(both, grams, magnitude_D, bits.bits, bits.group, tokens, self._dtypes[0], bits.symmetric)
        return folded_norm(norm_D, best_D)[1]

    def _store(self, expert: int) -> Stored:
        plan = self._plan
        if plan.bases is not None:
            return self._mixed(expert)
        if plan.rank is not None:
            return self._factored(expert)
        made = self._sparse(expert)
        if plan.bits is not None:
            return self._quantised(expert, made)
        return {role: m.to(t) for role, m, t in zip(EXPERT_ROLES, made, self._dtypes, strict=True)}

    def _cut(self, expert: int) -> ExpertMatrices:
        """Return ``expert`` merged and with its channels, in float32 or float64."""
        merge = self._merges.get(expert)
        made = _wide(self._read(expert)) if merge is None else merged(merge, lazily(self._read, merge.members))
        if self._plan.channels is None:
            return made
        kept_F = torch.tensor(self._plan.channels[self._kept.index(expert)], device=made.gate_FD.device)
        return ExpertMatrices(made.gate_FD[kept_F], made.up_FD[kept_F], made.down_DF[:, kept_F])

    def _measured(self, expert: int, names: frozenset[str]) -> ExpertMoments:
        """Return moments of the inputs of ``expert``, with its channels; Gram matrices from few tokens are shrunk."""
        if not names:
            return ExpertMoments()
        found = expert_moments(self._moments, self._inventory, self._index, names, *self._made_of(expert))
        inputs, channels, magnitude_F, tokens = found
        form = self._layer.form
        if self._plan.channels is not None or (form is not None and form.widths is not None):
            if self._plan.channels is not None:
                kept_F = torch.tensor(self._plan.channels[self._kept.index(expert)])
            else:  # statistics of narrower experts are filled up with zeros
                kept_F = torch.arange(form.widths[expert])  # type: ignore[union-attr, index]  # checked above
            channels = None if channels is None else sliced(channels, kept_F)
            magnitude_F = None if magnitude_F is None else magnitude_F[kept_F]
        if tokens:  # without any all moments are zero, and every kernel goes by the weights alone
            if inputs is not None and inputs.gram_XX is not None:
                few = tokens < ENOUGH * len(inputs.gram_XX)
                inputs = InputMoments(
                    gram_XX=shrunk(inputs.gram_XX, tokens, self._pooled_DD if few else inputs.gram_XX)
                )
            if channels is not None and channels.gram_XX is not None:
                # Channels of different experts have nothing in common, so few tokens shrink towards uncorrelated ones.
                own_FF = channels.gram_XX
                channels = InputMoments(gram_XX=shrunk(own_FF, tokens, torch.diag(own_FF.diagonal())))
        return ExpertMoments(inputs, channels, magnitude_F, tokens)

    @cached_property
    def _pooled_DD(self) -> Tensor:
        """Mean of x x^T over all (token, expert) pairs of the experts that stay or are merged."""
        used = used_experts(self._plan, self._layer.experts)
        counts = layer_moment(self._moments, self._inventory, "routed_tokens", self._index)[used].tolist()

        def own(place: int) -> Tensor:
            return gram(self._moments, self._inventory, "input_gram", self._index, used[place])

        mean_DD = pooled(Lazy(own, len(counts)), counts)
        assert mean_DD is not None  # an expert with few tokens has some
        return mean_DD

    def _made_of(self, expert: int) -> tuple[list[int], dict[int, Tensor]]:
        """Return what ``expert`` is made of, itself first, and the order of the channels of members that are aligned."""
        merge = self._merges.get(expert)
        made_of = [expert, *(m for m in (merge.members if merge else ()) if m != expert)]
        return made_of, {} if merge is None or merge.kernel != "aligned" else self._orders(merge)

    def _orders(self, merge: Merge) -> dict[int, Tensor]:
        """Return the order in which the hidden channels of each member went into the merge, as ``merged`` finds it."""
        reference = _wide(self._read(merge.into))
        return {m: align(reference, _wide(self._read(m))) for m in merge.members if m != merge.into}

    def _sparse(self, expert: int) -> ExpertMatrices:
        rule, made = self._plan.sparsity, self._cut(expert)
        if rule is None:
            return made
        found = self._measured(expert, rule.moments)
        # One factorisation for gate and up, whose inputs are the same.
        both = sparsified(torch.cat([made.gate_FD, made.up_FD]), rule, on_device_of(found.inputs, made.gate_FD))
        gate, up = both.chunk(2)
        return ExpertMatrices(gate, up, sparsified(made.down_DF, rule, on_device_of(found.channels, made.down_DF)))

    def _factored(self, expert: int) -> Stored:
        rule = self._plan.rank
        assert rule is not None
        made, ranks = self._cut(expert), rule.ranks[self._kept.index(expert)]
        found = self._measured(expert, rule.moments if rule.kernel == "whitened" else frozenset())
        bases = self._base or (None, None, None)
        roots = tuple(
            root_of(side, matrix) for side, matrix in ((found.inputs, made.gate_FD), (found.channels, made.down_DF))
        )
        stored: Stored = {}
        for role, matrix, rank, seen_by, base, dtype in zip(
            EXPERT_ROLES, made, ranks, (roots[0], roots[0], roots[1]), bases, self._dtypes, strict=True
        ):
            if not rank:
                stored[role] = matrix.to(dtype)
                continue
            rest = matrix if base is None else matrix - base[0]
            left, right = factored(rest, rank, root_NN=seen_by)
            stored |= {f"{role}.{LEFT}": left.to(dtype), f"{role}.{RIGHT}": right.to(dtype)}
        return stored

    @cached_property
    def _base(self) -> tuple[tuple[Tensor, Tensor], ...] | None:
        """The averages that the factors are added to, rounded as they are stored, and the columns of each that are stored."""
        rank = self._plan.rank
        rule = None if rank is None else rank.base
        if rank is None or rule is None:
            return None
        totals: list[Tensor] = []
        squares: list[Tensor] = []
        means = (EntryMean(), EntryMean(), EntryMean())
        names = frozenset() if rule.columns == 1.0 else rank.moments
        for place, member in enumerate(rule.members):
            made = self._cut(member)
            found = self._measured(member, names)
            if rule.kernel == "mean":
                weight = rule.weights[place]
                _add(totals, made, weight)
            else:
                weight = found.tokens or 0.0
                masses = entry_fisher(self._moments, self._inventory, self._index, *self._made_of(member))
                for mean, matrix, mass in zip(means, made, masses, strict=True):
                    mean.add(matrix, mass)
            _add(squares, [square_of(found.inputs, made.gate_FD), square_of(found.channels, made.down_DF)], weight)
        totals = totals or [mean.value().to(matrix.dtype) for mean, matrix in zip(means, made, strict=True)]
        inputs_D, channels_F = squares
        return tuple(
            (total.to(dtype).to(total.dtype), base_columns(total, square, rule.stored_columns(total.shape[1])))
            for total, square, dtype in zip(totals, (inputs_D, inputs_D, channels_F), self._dtypes, strict=True)
        )

    @cached_property
    def _fits(self) -> tuple[FittedBases, FittedBases]:
        """Bases of all gates, and of all ups."""
        rule = self._plan.bases
        assert rule is not None
        fits = []
        for place in range(2):
            weights_EMN = torch.stack([self._cut(expert)[place] for expert in self._kept])
            fit = fit_bases(weights_EMN, rule.count, rule.rank, rule.activation, rule.steps, rule.rate, rule.seed)
            fits.append(fit)
        return fits[0], fits[1]

    def _mixed(self, expert: int) -> Stored:
        place = self._kept.index(expert)
        stored: Stored = {}
        for role, fit, dtype in zip(EXPERT_ROLES, self._fits, self._dtypes, strict=False):
            stored[f"{role}.{LEFT}"] = fit.left_EMR[place].to(dtype)
            stored[f"{role}.{MIX}"] = fit.mix_EC[place].float()
        return stored | {EXPERT_ROLES[2]: self._cut(expert).down_DF.to(self._dtypes[2])}

    def _quantised(self, expert: int, made: ExpertMatrices) -> Stored:
        rule = self._plan.bits
        assert rule is not None
        grams: tuple[Tensor | None, Tensor | None] = (None, None)
        if rule.kernel == "awq":
            scale_D, scale_F = self.input_scale_D.to(made.gate_FD), self._channel_scale(expert, made)
            made = ExpertMatrices(
                made.gate_FD * scale_D, made.up_FD / scale_F[:, None] * scale_D, made.down_DF * scale_F
            )
        elif rule.kernel == "gptq":
            found = self._measured(expert, rule.moments)
            grams = (gram_of(found.inputs, made.gate_FD), gram_of(found.channels, made.down_DF))
        width, (gate_dtype, up_dtype, down_dtype) = len(made.gate_FD), self._dtypes

        def rounded(matrix: Tensor, gram_NN: Tensor | None, dtype: torch.dtype) -> Quantised:
            if gram_NN is None:
                return round_to_nearest(matrix, rule.bits, rule.group, dtype, rule.symmetric)
            zero = matrix == 0 if self._plan.sparsity is not None else None
            return gptq(matrix, rule.bits, rule.group, gram_NN, dtype, zero, rule.symmetric, rule.act_order)

        if gate_dtype == up_dtype:  # one stack, since both read the same inputs
            both = rounded(torch.cat([made.gate_FD, made.up_FD]), grams[0], gate_dtype)
            codes = [both.rows(slice(width)), both.rows(slice(width, None))]
        else:
            codes = [rounded(made.gate_FD, grams[0], gate_dtype), rounded(made.up_FD, grams[0], up_dtype)]
        stored: Stored = {}
        for role, one in zip(EXPERT_ROLES, [*codes, rounded(made.down_DF, grams[1], down_dtype)], strict=True):
            values = packed(one, rule.bits)
            stored |= {f"{role}.{part}": values[name] for part, name in ALL_PART_NAMES.items() if name in values}
        return stored

    def _channel_scale(self, expert: int, made: ExpertMatrices) -> Tensor:
        """Return AWQ's scale of the inputs of down; searched once, though asked for by the input scale and when written."""
        if expert not in self._channel_scales:
            self._channel_scales[expert] = self._search_channel_scale(expert, made)
        return self._channel_scales[expert]

    def _search_channel_scale(self, expert: int, made: ExpertMatrices) -> Tensor:
        rule = self._plan.bits
        assert rule is not None
        found = self._measured(expert, rule.moments)
        magnitude_F, gram_FF = found.magnitude_F, gram_of(found.channels, made.down_DF)
        if magnitude_F is None or gram_FF is None or not found.tokens:
            return torch.ones(made.down_DF.shape[1], dtype=made.down_DF.dtype, device=made.down_DF.device)
        size, dtype = magnitude_F.to(gram_FF), self._dtypes[2]
        scale_F = channel_scale(made.down_DF, gram_FF, size, rule.bits, rule.group, dtype, rule.symmetric)
        return scale_F.to(made.down_DF)

    def _gate_up(self, expert: int) -> Tensor:
        """Return gate and up of ``expert`` as AWQ scales them for down, one above the other."""
        made = self._sparse(expert)
        return torch.cat([made.gate_FD, made.up_FD / self._channel_scale(expert, made)[:, None]])

    def _input_gram(self, expert: int) -> Tensor:
        assert self._plan.bits is not None
        inputs = self._measured(expert, self._plan.bits.moments).inputs
        assert inputs is not None and inputs.gram_XX is not None
        return inputs.gram_XX

    def _tokens(self, expert: int) -> float:
        assert self._plan.bits is not None
        names = frozenset({"routed_tokens"})
        return self._measured(expert, names).tokens or 0.0


def _wide(expert: ExpertMatrices) -> ExpertMatrices:
    dtype = torch.float64 if expert.gate_FD.dtype == torch.float64 else torch.float32
    return ExpertMatrices(*(matrix.to(dtype) for matrix in expert))


def _add(sums: list[Tensor], terms: Sequence[Tensor], weight: float) -> None:
    """Add ``weight`` times ``terms`` to ``sums``, which is empty at first."""
    if not sums:
        sums.extend(term * weight for term in terms)
        return
    for total, term in zip(sums, terms, strict=True):
        total.add_(term, alpha=weight)
