"""A transformers model filled from the files of a checkpoint whose experts are stored in another form.

Transformers' own loading knows none of these forms, and few bits only with kernels that not every device has. Every tensor has
its place in the model (``Family.placement``, ``CompressedExperts.stored``), so it is read straight into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bench.checkpoint.checkpoint import Checkpoint
from bench.experts.stored_module import CompressedExperts
from bench.experts.whole import stored_expert, stored_linear
from bench.models.model_config import model_config
from methods.framework.errors import CheckpointError
from methods.framework.forms import (
    COLUMNS,
    PACKED,
    SCALE,
    SHAPE,
    SHARED_PREFIX,
    ZERO_POINT,
    part_of,
    whole_of_packed,
)
from methods.framework.inventory import EXPERT_ROLES, PASSED_ROLE, TensorEntry
from methods.framework.linears import part_of_linear, whole_linear

PACKED_PARTS = frozenset({PACKED, SCALE, SHAPE, ZERO_POINT})


def experts_of(model: nn.Module, checkpoint: Checkpoint, layer: int) -> nn.Module:
    """Return the experts module of a layer.

    Args:
        model: model of transformers for that checkpoint.
        checkpoint: whose family knows the module's name.
        layer: index of a decoder layer with experts.
    """
    return model.get_submodule(checkpoint.family.experts_module(layer))


def places(model: nn.Module, checkpoint: Checkpoint) -> Iterator[tuple[TensorEntry, Tensor]]:
    """Yield each float tensor of ``checkpoint`` with the part of ``model`` that holds it; those in few bits are left out."""
    named: dict[str, Tensor] = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    for entry in checkpoint.inventory.tensors():
        if entry.role == PASSED_ROLE:
            continue  # the language model is run alone
        layer = None if entry.layer is None else checkpoint.inventory.layers[entry.layer]
        if layer is not None and layer.form is not None and entry.role.startswith("expert."):
            _, part = part_of(entry)
            if part not in PACKED_PARTS:
                assert entry.layer is not None
                experts = experts_of(model, checkpoint, entry.layer)
                assert isinstance(experts, CompressedExperts)
                yield entry, experts.stored(entry.role, entry.expert)
            continue
        if part_of_linear(entry) is None:
            place = checkpoint.family.placement(entry)
            yield entry, place.within(named[place.name])


@torch.no_grad()
def fill(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Read every tensor of ``checkpoint`` into ``model``; matrices in few bits as the values that they stand for.

    Raises:
        CheckpointError: values that say where others belong make no sense.
    """
    for entry, tensor in places(model, checkpoint):
        values = checkpoint.read(entry)
        if entry.role.startswith(SHARED_PREFIX) and part_of(entry)[1] == COLUMNS:
            _check_columns(values, entry, checkpoint)
        tensor.copy_(values.reshape(tensor.shape))
    for index, layer in enumerate(checkpoint.inventory.layers):
        experts = (entry.expert for entry in layer.tensors if entry.expert is not None and whole_of_packed(entry))
        for expert in dict.fromkeys(experts):
            _unpack(model, checkpoint, index, expert)
        for whole in filter(None, map(whole_linear, layer.tensors)):
            place = checkpoint.family.placement(whole)
            place.within(model.get_parameter(place.name)).copy_(stored_linear(checkpoint, whole))


def _check_columns(columns_C: Tensor, entry: TensorEntry, checkpoint: Checkpoint) -> None:
    """Check that the columns of a base are columns of the matrix, each once."""
    assert entry.layer is not None
    gate = next(checkpoint.inventory.layers[entry.layer].with_role(f"{SHARED_PREFIX}gate"))
    inputs = gate.shape[0] if part_of(entry)[0] == f"{SHARED_PREFIX}down" else checkpoint.inventory.hidden
    ends = [-1, *columns_C.tolist(), inputs]
    if any(one >= other for one, other in pairwise(ends)):
        raise CheckpointError(
            f"{checkpoint.path}: {entry.name} must hold ascending numbers from 0 to {inputs - 1}, found "
            f"{str(columns_C.tolist())[:60]}; fetch or write the checkpoint again"
        )


def _unpack(model: nn.Module, checkpoint: Checkpoint, layer: int, expert: int) -> None:
    """Write the values of an expert in few bits into the model."""
    whole = stored_expert(checkpoint, layer, expert)
    experts = experts_of(model, checkpoint, layer)
    if isinstance(experts, CompressedExperts):
        for role, matrix in zip(EXPERT_ROLES, whole, strict=True):
            experts.stored(role, expert).copy_(matrix)
        return
    for entry in checkpoint.inventory.layers[layer].tensors:
        stands_for = whole_of_packed(entry) if entry.expert == expert else None
        if stands_for is not None:
            place = checkpoint.family.placement(stands_for)
            place.within(model.get_parameter(place.name)).copy_(whole[EXPERT_ROLES.index(stands_for.role)])


def filled_model(
    model_class: type[PreTrainedModel], checkpoint: Checkpoint, dtype: torch.dtype, **kwargs: Any
) -> PreTrainedModel:
    """Return a model of ``model_class`` with the values of ``checkpoint``.

    Args:
        model_class: stock class, or the one of ``bench.models.load`` whose layers differ.
        checkpoint: opened.
        dtype: of the weights in memory.
        kwargs: passed on to transformers, for instance ``attn_implementation``.

    Raises:
        CheckpointError: transformers cannot build the model.
    """
    from transformers.initialization import no_init_weights

    config = model_config(checkpoint.family, checkpoint.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the values in memory are not in few bits
    try:
        with no_init_weights():
            model: PreTrainedModel = model_class._from_config(config, dtype=dtype, **kwargs)
        _keep_wide(model, dtype)
        _adopt_generation_settings(model, checkpoint.path)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint.path} does not load as {model_class.__name__}: {error}") from error
    fill(model, checkpoint)
    model.tie_weights()
    return model.eval()


def _keep_wide(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give the tensors that ``from_pretrained`` keeps in float32, whatever is asked for, that type before they are filled.

    Args:
        model: without values yet.
        dtype: that was asked for.
    """
    from transformers.core_model_loading import build_glob_alternation

    planned: dict[str, torch.dtype] = model._get_dtype_plan(dtype)
    if not planned:
        return
    patterns, group_of, _ = build_glob_alternation(list(planned))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found = patterns.search(name)
        if found is not None and tensor.is_floating_point():
            tensor.data = tensor.data.to(planned[group_of[found.lastgroup]])


def _adopt_generation_settings(model: PreTrainedModel, folder: Path) -> None:
    """Let ``model`` generate as ``from_pretrained`` would have it, from ``generation_config.json`` or else ``config.json``."""
    if model.can_generate():
        model.adjust_generation_fn(
            generation_config=None,
            from_auto_class=False,
            from_pipeline=None,
            pretrained_model_name_or_path=str(folder),
            cache_dir=None,
            force_download=False,
            proxies=None,
            local_files_only=True,
            token=None,
            revision="main",
            subfolder="",
            trust_remote_code=False,
        )
