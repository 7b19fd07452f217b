"""Packed integers against the library of the format, and the config that states them against vLLM's own reading."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor

from bench.experts.packing import PACKED, SCALE, SHAPE, packed, unpacked
from bench.families.family import family_of
from bench.families.quantization_config import Packed, quantization_config, read_quantization
from bench.models.tiny import FAMILIES, tiny_config
from methods.framework.errors import CheckpointError
from methods.framework.inventory import EXPERT_ROLES, Packing
from methods.kernels.quantisation import Quantised, dequantised, round_to_nearest

SIZES = [(4, 8), (4, 32), (8, 16), (8, 96)]
STORED = (torch.bfloat16, torch.float16, torch.float32)
EXPERTS = tuple(f"model.layers.{{layer}}.mlp.experts.{{expert}}.{part}_proj.weight" for part in ("gate", "up", "down"))


def drawn(outputs: int = 6, inputs: int = 96) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))


def scheme(bits: int, group: int) -> QuantizationScheme:
    return QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(num_bits=bits, strategy="group", group_size=group)
    )


def templates(family: str) -> tuple[list[str], list[str], list[int]]:
    """Return the templates of the routed experts and of everything else, and the layers with experts."""
    config = tiny_config(family).to_dict()
    inventory = family_of(config).inventory(config)
    entries = {entry.template: entry.role in EXPERT_ROLES for entry in inventory.tensors()}
    experts, others = ([name for name, expert in entries.items() if expert == wanted] for wanted in (True, False))
    return experts, others, list(inventory.moe_layers)


@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize(("bits", "group"), SIZES)
def test_the_library_reads_the_very_weights_that_were_evaluated(bits: int, group: int, dtype: torch.dtype) -> None:
    made = round_to_nearest(drawn(), bits, group, dtype)
    tensors = packed(made, bits)
    read = PackedQuantizationCompressor.decompress(tensors, scheme(bits, group))["weight"]
    assert read.dtype == dtype and torch.equal(read, dequantised(made, dtype))


@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize(("bits", "group"), SIZES)
def test_packing_is_undone_exactly(bits: int, group: int, dtype: torch.dtype) -> None:
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (6, 96), generator=torch.Generator().manual_seed(1))
    made = Quantised(codes.to(torch.int8), torch.rand(6, 96 // group).to(dtype))
    tensors = packed(made, bits)
    assert tensors[PACKED].dtype == torch.int32 and tensors[PACKED].shape == (6, 96 * bits // 32)
    assert tensors[SHAPE].dtype == torch.int64 and tensors[SHAPE].tolist() == [6, 96]
    again = unpacked(tensors, bits, group)
    assert again.codes_OX.dtype == torch.int8 and torch.equal(again.codes_OX, made.codes_OX)
    assert torch.equal(again.scale_OG, made.scale_OG)


def test_a_word_holds_its_codes_from_the_lowest_bits_on() -> None:
    codes = torch.tensor([[-8, 7, 0, 1, -1, 2, 3, -7]], dtype=torch.int8)
    word = sum((code + 8) << (4 * place) for place, code in enumerate(codes[0].tolist()))
    made = packed(Quantised(codes, torch.ones(1, 1)), 4)
    assert int(made[PACKED].item()) % 2**32 == word


@pytest.mark.parametrize(("bits", "group"), SIZES)
def test_scales_and_codes_are_those_of_the_library(bits: int, group: int) -> None:
    weight, args = drawn(), QuantizationArgs(num_bits=bits, strategy="group", group_size=group)
    weight[2] = 0.0
    grouped = weight.unflatten(1, (-1, group))
    scale, _ = calculate_qparams(grouped.amin(dim=2), grouped.amax(dim=2), args)
    made = round_to_nearest(weight, bits, group, torch.float32)
    assert torch.equal(made.scale_OG, scale)
    compressed = PackedQuantizationCompressor.compress({"weight": weight, "weight_scale": scale}, scheme(bits, group))
    assert torch.equal(compressed["weight_packed"], packed(made, bits)[PACKED])


def test_tensors_that_do_not_belong_together_are_refused() -> None:
    tensors = packed(round_to_nearest(drawn(), 4, 32, torch.bfloat16), 4)
    for bits, group, wrong in ((8, 32, PACKED), (4, 16, SCALE)):
        with pytest.raises(CheckpointError, match=rf"{wrong} of a matrix of shape \[6, 96\] in {bits} bits .* must be"):
            unpacked(tensors, bits, group)
    with pytest.raises(CheckpointError, match="found"):
        unpacked({**tensors, SHAPE: torch.tensor([6, 64])}, 4, 32)
    with pytest.raises(CheckpointError, match="found"):
        unpacked({**tensors, SHAPE: torch.tensor([6])}, 4, 32)


@pytest.mark.parametrize(
    "forms", [{0: (4, 128)}, {1: (4, 32), 2: (4, 32)}, {1: (8, 64), 3: (4, 128), 5: (8, 64), 11: (4, 8)}]
)
def test_what_is_written_is_read(forms: dict[int, tuple[int, int]]) -> None:
    forms = {layer: Packing(*packing) for layer, packing in forms.items()}
    written = json.loads(json.dumps(quantization_config(EXPERTS, ["lm_head.weight"], forms)))
    assert read_quantization({"quantization_config": written}, 12) == Packed(forms, {})
    assert len(written["config_groups"]) == len(set(forms.values()))
    assert read_quantization({}, 12) == Packed({}, {}) == read_quantization({"quantization_config": None}, 12)
    stated = QuantizationConfig.model_validate(written)
    assert stated.format == "pack-quantized"


def test_linear_layers_beside_experts_stand_in_the_groups_of_their_packing() -> None:
    query, dense = "model.layers.{layer}.self_attn.q_proj.weight", "model.layers.{layer}.mlp.up_proj.weight"
    experts = {1: Packing(4, 32), 2: Packing(8, 32)}
    linears = {query: {0: Packing(4, 64), 1: Packing(4, 32), 2: Packing(8, 32)}, dense: {0: Packing(4, 64)}}
    written = json.loads(json.dumps(quantization_config(EXPERTS, [query, dense, "lm_head.weight"], experts, linears)))
    found = read_quantization({"quantization_config": written}, 3)
    assert found == Packed(experts, {0: Packing(4, 64), 1: Packing(4, 32), 2: Packing(8, 32)})
    assert written["ignore"] == ["lm_head"]
    targets = [group["targets"] for group in written["config_groups"].values()]
    assert targets[1] == [r"re:model\.layers\.(0)\.self_attn\.q_proj$", r"re:model\.layers\.(0)\.mlp\.up_proj$"]
    assert [len(names) for names in targets] == [4, 2, 4]


def test_no_layer_is_no_config() -> None:
    with pytest.raises(ValueError, match="no layer"):
        quantization_config(EXPERTS, [], {})


FOREIGN: list[tuple[str, list[Any], Any]] = [
    ("quant_method is 'gptq'", ["quant_method"], "gptq"),
    ("format is 'float-quantized'", ["format"], "float-quantized"),
    ("quantization_status is 'frozen'", ["quantization_status"], "frozen"),
    ("cache is quantised", ["kv_cache_scheme"], {"num_bits": 8}),
    ("no config_groups", ["config_groups"], {}),
    ("group_0 is", ["config_groups", "group_0", "format"], "nvfp4-pack-quantized"),
    ("quantises activations", ["config_groups", "group_0", "input_activations"], {"num_bits": 8}),
    ("weights of group_0", ["config_groups", "group_0", "weights", "num_bits"], 3),
    ("weights of group_0", ["config_groups", "group_0", "weights", "symmetric"], "no"),
    ("weights of group_0", ["config_groups", "group_0", "weights", "group_size"], None),
    ("weights of group_0", ["config_groups", "group_0", "weights", "zp_dtype"], "int8"),
    ("weights of group_0", ["config_groups", "group_0", "weights"], None),
    ("group_0 targets", ["config_groups", "group_0", "targets"], ["Linear"]),
    ("group_0 targets", ["config_groups", "group_0", "targets"], ["Linear", "Linear", "Linear"]),
    ("group_0 targets", ["config_groups", "group_0", "targets", 1], r"re:model\.layers\.(1)\.mlp\.experts\.\d+\.up$"),
    ("layer 1 is named twice", ["config_groups", "group_1", "targets"], "group_0"),
    ("names layer 9; the model has 4", ["config_groups", "group_0", "targets"], "layer 9"),
]


@pytest.mark.parametrize(("message", "path", "value"), FOREIGN)
def test_another_quantisation_is_refused_with_a_remedy(message: str, path: list[Any], value: Any) -> None:
    written = quantization_config(EXPERTS, ["lm_head.weight"], {1: (4, 32), 2: (4, 32), 3: (8, 32)})
    groups = written["config_groups"]
    if value == "group_0":
        value = list(groups["group_0"]["targets"])
    elif value == "layer 9":
        value = quantization_config(EXPERTS, [], {9: (4, 32)})["config_groups"]["group_0"]["targets"]
    place = written
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(CheckpointError, match=message) as caught:
        read_quantization({"quantization_config": written}, 4)
    assert "16-bit checkpoint" in str(caught.value)


def test_a_config_of_another_kind_is_refused() -> None:
    for stated in ("awq", [], 4):
        with pytest.raises(CheckpointError, match="not a mapping"):
            read_quantization({"quantization_config": stated}, 4)


class Served:
    """What vLLM makes of a config: its schemes by the names that its modules have."""

    def __init__(self, config: dict[str, Any], fused: dict[str, list[str]]) -> None:
        from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
            CompressedTensorsConfig,
        )

        self.config = CompressedTensorsConfig.from_config(copy.deepcopy(config))
        self.config.packed_modules_mapping = fused

    def form(self, name: str, kind: str) -> tuple[int, int] | None:
        found = self.config.get_scheme_dict(type(kind, (torch.nn.Module,), {})(), name)
        if found is None:
            return None
        assert found["input_activations"] is None and found["format"] == "pack-quantized"
        assert self.config._is_wNa16_group_channel(found["weights"], None) and found["weights"].symmetric
        return found["weights"].num_bits, found["weights"].group_size


PLAIN = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
FUSED = {
    **{family: PLAIN for family in FAMILIES},
    "deepseek_v2": {"gate_up_proj": ["gate_proj", "up_proj"]},  # without a low rank for queries, as V2-Lite
    "deepseek_v3": {
        "gate_up_proj": ["gate_proj", "up_proj"],
        "fused_qkv_a_proj": ["q_a_proj", "kv_a_proj_with_mqa"],
    },
}
"""Modules that vLLM makes of several, by family, as its model classes state them."""
LINEARS = {
    "self_attn.qkv_proj": "QKVParallelLinear",
    "self_attn.q_proj": "ColumnParallelLinear",
    "self_attn.o_proj": "RowParallelLinear",
    "self_attn.fused_qkv_a_proj": "MergedColumnParallelLinear",
    "self_attn.kv_b_proj": "ColumnParallelLinear",
    "mlp.gate": "GateLinear",
    "block_sparse_moe.gate": "ReplicatedLinear",
    "mlp.gate_up_proj": "MergedColumnParallelLinear",
    "mlp.down_proj": "RowParallelLinear",
    "mlp.shared_expert.gate_up_proj": "MergedColumnParallelLinear",
    "mlp.shared_experts.down_proj": "RowParallelLinear",
    "mlp.shared_expert_gate": "ReplicatedLinear",
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mixed", [False, True])
def test_vllm_quantises_the_routed_experts_of_the_named_layers_and_nothing_else(family: str, mixed: bool) -> None:
    experts, others, moe = templates(family)
    forms = {layer: (4, 32) for layer in moe} if not mixed else {moe[0]: (8, 16)} | {moe[-1]: (4, 32)}
    served = Served(quantization_config(experts, others, forms), FUSED[family])
    modules = {m: k for m, k in LINEARS.items() if "qkv" not in m or m.rpartition(".")[2] in FUSED[family]}
    block = experts[0].partition(".experts")[0].partition("{layer}.")[2]
    names = ["w1", "w3", "w2"] if family == "mixtral" else ["gate_proj", "up_proj", "down_proj"]
    for layer in range(3):
        for matrix in names:
            name = f"model.layers.{layer}.{block}.experts.0.{matrix}"
            assert served.form(name, "RoutedExperts") == forms.get(layer), name
        for module, kind in modules.items():
            assert served.form(f"model.layers.{layer}.{module}", kind) is None, module
    assert served.form("lm_head", "ParallelLMHead") is None
    assert served.form("model.embed_tokens", "VocabParallelEmbedding") is None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_other_matrix_is_listed_as_ignored(family: str) -> None:
    """Also for readers that go by classes: under a target that takes every Linear, only routed experts would be left."""
    experts, others, moe = templates(family)
    config = quantization_config(experts, others, {layer: (4, 32) for layer in moe})
    for group in config["config_groups"].values():
        group["targets"] = ["Linear"]
    served = Served(config, FUSED[family])
    expert = experts[0].removesuffix(".weight").format(layer=moe[0], expert=5)
    assert served.form(expert, "ColumnParallelLinear") == (4, 32)
    for name in others:
        if name.endswith(".weight"):
            module_name = name.removesuffix(".weight").format(layer=moe[0])
            assert served.form(module_name, "ColumnParallelLinear") is None, module_name


def test_the_moe_method_of_vllm_accepts_the_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM asks for one scheme of three matrices and hands it to its 4- and 8-bit kernels, which need a GPU."""
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
        CompressedTensorsMoEMethod,
        compressed_tensors_moe_wna16,
    )

    def taken(weights: QuantizationArgs, inputs: object, moe: object) -> tuple[int, int | None]:
        return weights.num_bits, weights.group_size

    monkeypatch.setattr(compressed_tensors_moe_wna16, "CompressedTensorsWNA16MoEMethod", taken)
    served = Served(quantization_config(EXPERTS, [], {1: (4, 128), 2: (8, 64)}), PLAIN)
    layer = torch.nn.Module()
    layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name, layer.ckpt_down_proj_name = "gate_proj", "up_proj", "down_proj"
    layer.moe_config = None
    for index, form in ((1, (4, 128)), (2, (8, 64))):
        name = f"model.layers.{index}.mlp.experts"
        assert CompressedTensorsMoEMethod.get_moe_method(served.config, layer, name) == form
