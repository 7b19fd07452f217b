"""The model without weights: transformers' own layers on the meta device, of which one is given parameters at a time.

Attention (plain, MLA, sliding window), norms, rotary tables and masks are those of transformers, so they need no code per
family. The feed-forward sub-layer is replaced by a stub that hands its input out; the caller computes it for many
sequences at once and adds it to the residual stream.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench.calibration.layers.hidden import Block
from bench.families.family import family_of
from methods.framework.errors import CheckpointError, StatsError
from methods.framework.inventory import MLP_PREFIXES, LayerInventory
from methods.framework.linears import sites, whole_linears

if TYPE_CHECKING:
    from bench.calibration.layers.weights import WeightReader

Show = Callable[[str, int, Tensor], None]
"""Called with a site of linear layers, the first of some tokens as a row of the block, and their inputs, one a row."""


class _Handout(nn.Module):
    """Stands where the feed-forward sub-layer was: keeps its input and adds nothing to the residual stream."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.taken: Tensor | None = None

    def forward(self, hidden_BSD: Tensor) -> Tensor | tuple[Tensor | None, ...]:
        self.taken = hidden_BSD
        nothing = hidden_BSD.new_zeros(()).expand_as(hidden_BSD)
        return nothing if self.outputs == 1 else (nothing, *(None for _ in range(self.outputs - 1)))


class _Eavesdropper(nn.Module):
    """Stands where a decoder layer was and keeps the keyword arguments that the model passes to it."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.heard: dict[str, Any] = {}

    def forward(self, hidden_BSD: Tensor, **kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:
        self.heard = kwargs
        return hidden_BSD if self.outputs == 1 else (hidden_BSD, *(None for _ in range(self.outputs - 1)))


def _built(auto_class: Any, parsed: Any, dtype: torch.dtype) -> Any:
    """Return the model, with fused attention where transformers has it for this architecture."""
    from transformers import MODEL_MAPPING

    attention = "sdpa" if MODEL_MAPPING[type(parsed)]._supports_sdpa else "eager"
    return auto_class.from_config(parsed, attn_implementation=attention, dtype=dtype).eval()


class Skeleton:
    """Decoder layers of a checkpoint's architecture, at most one of them with parameters."""

    def __init__(
        self, config: Mapping[str, Any], layers: tuple[LayerInventory, ...], device: torch.device, dtype: torch.dtype
    ):
        """Build the architecture without allocating weights.

        Args:
            config: content of ``config.json``.
            layers: what the checkpoint holds for each decoder layer.
            device: where a layer is while it has parameters.
            dtype: type of its weights and activations.

        Raises:
            CheckpointError: ``config`` describes another number of layers.
        """
        from transformers import AutoModel
        from transformers.activations import ACT2FN

        from bench.models.model_config import model_config

        self._family = family_of(config)
        stated = self._family.language_config(config)
        document = {
            key: value for key, value in stated.items() if key not in ("per_layer_config", "quantization_config")
        }
        parsed = model_config(self._family, document)
        with torch.device("meta"):
            model = _built(AutoModel, parsed, dtype)
        self.activation = self._family.gating(config) or ACT2FN[getattr(parsed, "hidden_act", "silu")]
        self._scale = self._family.sublayer_scale(config)
        self._layers = list(model.layers)
        if len(self._layers) != len(layers):
            raise CheckpointError(
                f"config.json describes {len(self._layers)} decoder layers, the checkpoint holds {len(layers)}"
            )
        self._kinds = [layer.mlp for layer in layers]
        self._listeners = [_Eavesdropper(self._family.file.layer_outputs) for _ in layers]
        model.layers = nn.ModuleList(self._listeners)
        for name, module in list(model.named_children()):
            buffers = dict(module.named_buffers())
            if module is not model.layers and not dict(module.named_parameters()) and buffers:
                # Built again outside of the meta device, because its frequencies are computed, not loaded.
                setattr(model, name, type(module)(config=parsed).to(device))
            elif name == self._family.final_norm_module().rpartition(".")[2]:
                setattr(model, name, nn.Identity())
        self._model = model
        self._empty = torch.zeros(1, 1, parsed.hidden_size, device=device, dtype=dtype)
        self._arguments: dict[int, list[dict[str, Any]]] = {}

    def load(self, index: int, inventory: LayerInventory, weights: WeightReader) -> Attention:
        """Return decoder layer ``index`` with its attention and norms read from the checkpoint.

        Args:
            index: which decoder layer of the architecture.
            inventory: what the checkpoint holds for it.
            weights: reader of the checkpoint.

        Raises:
            CheckpointError: the checkpoint's tensors are not those of the architecture.
        """
        layer = self._layers[index]
        stub = _Handout(self._family.block_outputs(self._kinds[index]))
        norm, block = (_in_layer(name) for name in self._family.mlp_modules(index))
        layer.set_submodule(block, stub)
        output_norm = self._family.output_norm_module(index)
        output_norm = None if output_norm is None else _in_layer(output_norm)
        if self._kinds[index] == "none":
            for name in filter(None, (norm, output_norm)):
                layer.set_submodule(name, nn.Identity())
        entries = {
            _in_layer(self._family.placement(entry).name): entry
            for entry in whole_linears(inventory.tensors)
            if not entry.role.startswith(MLP_PREFIXES)
        }
        expected = {name for name, _ in layer.named_parameters()}
        if expected != set(entries):
            missing, surplus = sorted(expected - set(entries)), sorted(set(entries) - expected)
            raise CheckpointError(f"layer {index}: tensors missing {missing}, not of this architecture {surplus}")
        tensors = {name: weights.read(name, entry) for name, entry in entries.items()}
        layer.load_state_dict(tensors, strict=False, assign=True)
        paths = {entry.role: name.removesuffix(".weight") for name, entry in entries.items()}
        readers = {
            site.name: [layer.get_submodule(paths[role]) for role in site.roles]
            for site in sites(inventory, "attention")
        }
        tail = None if output_norm is None else layer.get_submodule(output_norm)
        return Attention(self, index, layer, stub, readers, tail)

    def scaled(self, output_TD: Tensor) -> Tensor:
        """Return what the model adds to the residual stream for the output of a feed-forward sub-layer."""
        return output_TD if self._scale == 1.0 else output_TD * self._scale

    def arguments(self, index: int, length: int) -> dict[str, Any]:
        """Return the rotary tables, positions and mask that the model would pass to layer ``index``."""
        if length not in self._arguments:
            if len(self._arguments) >= 4:  # ragged corpora have many lengths, and a sliding mask has length^2 elements
                self._arguments.pop(next(iter(self._arguments)))
            self._model(inputs_embeds=self._empty.expand(1, length, -1), use_cache=False)
            self._arguments[length] = [listener.heard for listener in self._listeners]
        return self._arguments[length][index]


class Attention:
    """The attention half of one decoder layer, with parameters."""

    def __init__(
        self,
        skeleton: Skeleton,
        index: int,
        layer: nn.Module,
        stub: _Handout,
        readers: Mapping[str, Sequence[nn.Module]],
        tail: nn.Module | None,
    ) -> None:
        """Keep the parts.

        Args:
            skeleton: the architecture around the layer, which knows masks and positions.
            index: of the decoder layer.
            layer: the module, whose parameters are loaded.
            stub: stands in it for the feed-forward sub-layer and keeps what that would take in.
            readers: by site of the attention, the modules that read its inputs.
            tail: norm that the output of the feed-forward sub-layer passes; None: there is none.
        """
        self._tail = tail
        self._skeleton, self._index, self._layer, self._stub = skeleton, index, layer, stub
        self._readers = readers

    def __call__(self, hidden_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the residual stream after attention, and the feed-forward sub-layer's normed input, both (B, S, D)."""
        found = self._layer(hidden_BSD, **self._skeleton.arguments(self._index, hidden_BSD.shape[1]))
        residual_BSD = found[0] if isinstance(found, tuple) else found
        taken_BSD = self._stub.taken
        assert taken_BSD is not None
        self._stub.taken = None
        return residual_BSD, taken_BSD

    def added(self, output_TD: Tensor) -> Tensor:
        """Return what is added to the residual stream for the output of the feed-forward sub-layer."""
        return self._skeleton.scaled(output_TD if self._tail is None else self._tail(output_TD))

    def over(self, block: Block, hidden_TD: Tensor, residual_TD: Tensor, show: Show | None = None) -> Tensor:
        """Run on all tokens of a block, batch by batch, and return the feed-forward sub-layer's normed input, (T, D).

        Args:
            block: how the tokens lie.
            hidden_TD: the states that enter the layer.
            residual_TD: takes the residual stream after attention; it may be ``hidden_TD`` itself.
            show: called with what the linear layers of the attention read.

        Raises:
            StatsError: linear layers that should read the same inputs do not.
        """
        taken_TD = torch.empty_like(hidden_TD)
        read: dict[str, Tensor] = {}
        with self._listening(read) if show is not None else nullcontext():
            for batch in block.batches:
                rows = slice(batch.start - block.start, batch.stop - block.start)
                residual_BSD, taken_BSD = self(hidden_TD[rows].view(batch.count, batch.length, -1))
                if show is not None:
                    for site, x_BSX in read.items():
                        show(site, rows.start, x_BSX.flatten(0, -2))
                    read.clear()
                residual_TD[rows] = residual_BSD.flatten(0, 1)
                taken_TD[rows] = taken_BSD.flatten(0, 1)
        return taken_TD

    @contextmanager
    def _listening(self, read: dict[str, Tensor]) -> Iterator[None]:
        """Put what the linear layers of the attention read into ``read``, by site, whenever the layer runs."""

        def keep(site: str, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x_BSX = read.setdefault(site, arguments[0])
            if x_BSX.data_ptr() != arguments[0].data_ptr() or x_BSX.shape != arguments[0].shape:
                raise StatsError(
                    f"layer {self._index}: the linear layers of {site!r} do not read the same inputs in this architecture; this "
                    "is a defect of methods/framework/linears.py, which says that they do"
                )

        with ExitStack() as hooks:
            for site, modules in self._readers.items():
                for module in modules:
                    hooks.callback(module.register_forward_pre_hook(partial(keep, site)).remove)
            yield


def _in_layer(name: str) -> str:
    """Return the name of a module or parameter of a decoder layer as that layer itself calls it."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[1]
