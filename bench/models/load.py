"""Models and tokenizers of checkpoints in transformers, also where layers differ from each other.

Equal layers load through the stock class. Transformers reads ``per_layer_config`` but its MoE models cannot be built
from it, so for such checkpoints a subclass of the stock class rebuilds each layer's MoE block from that layer's own
config, puts experts behind a map where the config states one, and replaces a dropped block by zeros. Weights then load
through transformers' own conversion. Experts in another form (factors, fewer channels, few bits) get a module of ours or are
held as what they stand for, and the model is filled tensor by tensor.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bench.checkpoint.checkpoint import Checkpoint
from bench.checkpoint.source import found_source
from bench.checkpoint.tokenizer_files import open_tokenizer
from bench.experts.mapped import put_behind_map
from bench.experts.stored_module import CompressedExperts
from bench.experts.weighed_inputs import WeighedExperts
from bench.families.compressed_config import PREFIX
from bench.families.family import Family
from bench.models.filled import filled_model
from bench.models.model_config import model_config
from methods.framework.errors import CheckpointError
from methods.framework.forms import has_own_form
from methods.framework.inventory import PASSED_ROLE, Inventory, LayerInventory
from methods.framework.outside import an_object, read_json


class DroppedBlock(nn.Module):
    """What is left of a dropped MoE sub-layer: it adds nothing to the residual stream.

    Args:
        outputs: values that the block returns.
    """

    def __init__(self, outputs: int = 1) -> None:
        """Hold nothing."""
        super().__init__()
        self.outputs = outputs

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return zeros of the shape of ``hidden``, and nothing for further values."""
        zeros = torch.zeros_like(hidden)
        return zeros if self.outputs == 1 else (zeros, *(None for _ in range(self.outputs - 1)))


def load_model(path: str | Path, dtype: torch.dtype = torch.float32, **kwargs: Any) -> PreTrainedModel:
    """Return the model of a checkpoint, ready for evaluation.

    Args:
        path: folder or hub id.
        dtype: of the weights in memory.
        kwargs: passed to ``from_pretrained``, for instance ``attn_implementation``.

    Raises:
        CheckpointError: transformers has no class for the family, or a weight of the model is not in the files or the
            reverse (nothing is ever newly initialised).
    """
    checkpoint = Checkpoint.open(path)  # damaged files are named here, before transformers meets them
    folder = checkpoint.complete()
    _check_generation_settings(folder)
    model_class = _class_for(checkpoint.family, checkpoint.config)
    try:
        if any(layer.form is not None or layer.linear_bits is not None for layer in checkpoint.inventory.layers) or any(
            entry.stored is not None or entry.role == PASSED_ROLE for entry in checkpoint.inventory.tensors()
        ):
            return filled_model(model_class, checkpoint, dtype, **kwargs)
    finally:
        checkpoint.close()
    # Tensors of another shape are listed below; transformers' own refusal would not name them.
    settings = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True, **kwargs}
    if checkpoint.family.file.loads_as is not None:
        settings["config"] = model_config(checkpoint.family, checkpoint.config)
    try:
        model, info = model_class.from_pretrained(folder, **settings)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} does not load as {model_class.__name__}: {error}") from error
    ignorable = checkpoint.family.ignorable(checkpoint.config)
    extra = {name for name in info["unexpected_keys"] if not any(fnmatch.fnmatch(name, glob) for glob in ignorable)}
    wrong = {"missing": info["missing_keys"], "unexpected": extra, "of another shape": info["mismatched_keys"]}
    found = [f"{kind}: {', '.join(sorted(map(str, names))[:4])}" for kind, names in wrong.items() if names]
    if found:
        raise CheckpointError(f"{folder} does not hold the weights of {model_class.__name__}; {'; '.join(found)}")
    return cast(PreTrainedModel, model.eval())


def _check_generation_settings(folder: Path) -> None:
    """Check that ``generation_config.json``, where there is one, is an object; transformers would do without a damaged one.

    Raises:
        CheckpointError: it is damaged.
    """
    file, remedy = folder / "generation_config.json", "fetch it again, or remove it to generate as config.json says"
    if file.exists():
        an_object(read_json(file, CheckpointError, remedy, infinite=True), str(file), CheckpointError, remedy)


def load_tokenizer(path: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a checkpoint, which may run Python code of its own where ``trust_remote_code`` says so.

    Raises:
        CheckpointError: it has none that transformers can load as it is, or none without code of its own.
    """
    folder = found_source(path).folder
    return cast(PreTrainedTokenizerBase, open_tokenizer(folder, trust_remote_code))


def skeleton(checkpoint: Checkpoint) -> PreTrainedModel:
    """Return the model of a checkpoint without weights, on the meta device."""
    model_class = _class_for(checkpoint.family, checkpoint.config)
    with torch.device("meta"):
        return model_class(model_config(checkpoint.family, checkpoint.config))


def check_loadable(checkpoint: Checkpoint) -> None:
    """Check that the model which transformers builds has exactly the tensors that the checkpoint holds.

    A family that transformers has no class for is not checked.

    Raises:
        CheckpointError: with the names that differ.
    """
    family, inventory = checkpoint.family, checkpoint.inventory
    if family.architecture is None:
        return
    model = skeleton(checkpoint)
    tied = set(model.all_tied_weights_keys) if inventory.tied_embeddings else set()
    formed = (index for index, layer in enumerate(inventory.layers) if has_own_form(layer.form))
    own = tuple(f"{family.experts_module(index)}." for index in formed)
    needed = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name not in tied and not name.startswith(own)
    }
    if different := sorted(name for name, _ in needed.items() ^ family.module_shapes(inventory).items()):
        names = ", ".join(dict.fromkeys(different[:4]))
        raise CheckpointError(f"{checkpoint.path}: {type(model).__name__} and the files differ in {names}")


def _class_for(family: Family, config: Mapping[str, Any]) -> type[PreTrainedModel]:
    """Return the stock class, or ours where layers differ."""
    import transformers

    stock = getattr(transformers, family.architecture, None) if family.architecture else None
    if stock is None:
        raise CheckpointError(
            f"transformers {transformers.__version__} has no model class for family {family.name}; it can be planned "
            "and written, but not run here"
        )
    return (
        _layered(family, stock)
        if family.language_config(config).get("per_layer_config")
        else cast(type[PreTrainedModel], stock)
    )


@cache
def _layered(family: Family, stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return a subclass of ``stock`` whose layers follow ``config.per_layer_config``."""

    def build(self: PreTrainedModel, config: PreTrainedConfig) -> None:
        overrides = config.to_dict().get("per_layer_config") or {}
        layer_configs = {int(index): config.per_layer_config[int(index)] for index in overrides}
        inventory = family.inventory(config.to_dict())
        # Stock code reads the counts of the whole model while it builds; per-layer ones hide them.
        config.per_layer_config = None
        try:
            stock.__init__(self, config)
        finally:
            config.per_layer_config = overrides
        for index, layer_config in layer_configs.items():
            _rebuild(self, family, index, config, layer_config, inventory)

    return cast(type[PreTrainedModel], type(PREFIX + stock.__name__, (stock,), {"__init__": build}))


def _rebuild(
    model: PreTrainedModel,
    family: Family,
    index: int,
    config: PreTrainedConfig,
    layer_config: PreTrainedConfig,
    inventory: Inventory,
) -> None:
    """Replace the MoE block of layer ``index`` by one of its own size, built from ``layer_config``."""
    layer = inventory.layers[index]
    if layer.mlp == "dense":
        return
    norm, block = family.mlp_modules(index)
    if layer.mlp == "none":
        for name in filter(None, (norm, family.output_norm_module(index))):
            model.set_submodule(name, nn.Identity())
        model.set_submodule(block, DroppedBlock(family.file.block_outputs))
        return
    stock = type(model.get_submodule(block))
    model.set_submodule(block, built_block(stock, family, layer, layer_config, config))


def built_block(
    stock: type[nn.Module],
    family: Family,
    layer: LayerInventory,
    layer_config: PreTrainedConfig,
    config: PreTrainedConfig,
) -> nn.Module:
    """Return the MoE block of one layer as it is stored, without values.

    Args:
        stock: class of the family's block.
        family: of the model.
        layer: what is stored.
        layer_config: of a model whose layers are all like this one.
        config: of the whole model, which the block refers to afterwards, so that set_experts_implementation reaches it.
    """
    rebuilt: nn.Module = stock(layer_config)
    name = family.experts_module(0).rpartition(".")[2]
    experts: Any = getattr(rebuilt, name)
    configs = [layer_config]
    if has_own_form(layer.form):
        held = WeighedExperts if family.file.router.weighs_inputs else CompressedExperts
        experts = held(layer, experts.act_fn)
    elif layer.expert_map is not None:  # the block was built for router rows, of which there are more
        configs.append(copy.copy(layer_config))
        setattr(configs[-1], family.file.keys.experts[0], layer.experts)
        experts = type(experts)(configs[-1])
    if layer.expert_map is not None:
        put_behind_map(experts, rebuilt, layer.expert_map, layer.constants, config.hidden_size)
    setattr(rebuilt, name, experts)
    for module in rebuilt.modules():
        if any(getattr(module, "config", None) is own for own in configs):
            module.config = config
    return rebuilt
