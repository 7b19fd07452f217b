"""Whatever a file holds, its reader gives values or one of our errors: no other exception, and no long wait."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save

from bench.checkpoint.checkpoint import INDEX, SINGLE, Checkpoint, read_headers
from bench.checkpoint.config_file import read_config
from bench.checkpoint.headers import read_header
from bench.checkpoint.source import local_folder
from bench.families.family import family_of
from bench.records.record import read_record
from bench.settings.method_settings import parse_method
from bench.settings.run_settings import RunConfig
from bench.settings.strict import load_settings
from bench.text.corpus import parse
from methods.framework.errors import ConfigError, MoebenchError
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from sweeps.sweep_config import load_sweep
from tests.fuzz.strangers import JSON, bounded, damaged, spoiled, text_of
from tests.support.records import record
from tests.support.tiny import FAMILIES, tiny_checkpoint, tiny_config

pytestmark = pytest.mark.thorough

ours = contextlib.suppress(MoebenchError)
"""What is not ours comes out, and fails the test."""

SHARD = save({"a.weight": np.zeros((2, 3), np.float32), "b.weight": np.zeros(4, np.float16)})
CONFIGS = [
    {
        **json.loads(tiny_config(name).to_json_string(use_diff=False)),
        "per_layer_config": {
            "1": {"expert_map": [0, 1, 1, 0], "constant_experts": 1, "expert_form": {"widths": [3, 4]}}
        },
    }
    for name in FAMILIES
]
HEADER = json.loads(SHARD[8 : 8 + int.from_bytes(SHARD[:8], "little")])
LAYERS = (
    LayerPlan(experts=(0, 2)),
    LayerPlan(experts=(0, 1), merges=(Merge(into=0, members=(0, 3), weights=(0.5, 0.5)),)),
    LayerPlan(drop="moe"),
)
SETTINGS = {
    "model": "pocket-mixtral",
    "methods": [{"name": "reap", "knobs": {"keep": 0.5}}],
    "calibration": {"corpus": "pocket", "sequences": 4, "length": 16},
    "evaluation": {"tasks": ["pocket"]},
}
SWEEP = {
    "name": "s",
    "objectives": [{"kind": "size", "of": "bytes"}],
    "model": "m",
    "method": "reap",
    "space": {"keep": {"low": 0.1, "high": 1.0}},
    "trials": 3,
}


@bounded
@given(st.one_of(damaged(SHARD), st.binary(max_size=64), spoiled(HEADER)))
def test_headers(tmp_path: Path, content: Any) -> None:
    if isinstance(content, dict):
        text = text_of(content)
        content = len(text).to_bytes(8, "little") + text + bytes(32)
    (tmp_path / SINGLE).write_bytes(content)
    with ours:
        read_header(tmp_path / SINGLE)


@bounded
@given(st.one_of(JSON, spoiled({"metadata": {}, "weight_map": {"a.weight": "one", "b.weight": "one"}})))
@example({"weight_map": {"a.weight": "x" * 3000}})
def test_indexes(tmp_path: Path, document: Any) -> None:
    (tmp_path / "one").write_bytes(SHARD)
    (tmp_path / INDEX).write_bytes(text_of(document))
    with ours:
        read_headers(tmp_path)


@bounded
@given(
    st.one_of(
        *map(spoiled, CONFIGS), JSON.map(lambda value: value if isinstance(value, dict) else {"model_type": value})
    )
)
def test_configs(tmp_path: Path, document: Any) -> None:
    (tmp_path / "config.json").write_bytes(text_of(document))
    with ours:
        config = read_config(tmp_path)
        family = family_of(config)
        inventory = family.inventory(config)
        family.ignorable(config)
        family.module_shapes(inventory)


@bounded
@given(st.data())
def test_one_key_of_a_config_at_a_time(data: st.DataObject) -> None:
    config = dict(data.draw(st.sampled_from(CONFIGS)))
    config.pop("per_layer_config")
    config[data.draw(st.sampled_from(sorted(config)))] = data.draw(JSON)
    with ours:
        family_of(config).inventory(config)


@bounded
@given(st.one_of(JSON, spoiled(json.loads(Plan(family="mixtral", layers=LAYERS).dumps())), st.binary(max_size=40)))
def test_plans(document: Any) -> None:
    with ours:
        plan = Plan.loads(document if isinstance(document, bytes) else text_of(document))
        config = CONFIGS[FAMILIES.index("mixtral")] | {"per_layer_config": None}
        plan.validate_for(family_of(config).inventory(config))


@bounded
@pytest.mark.parametrize("ending", ["yaml", "json"])
@pytest.mark.parametrize("document", [SETTINGS, SWEEP], ids=["run", "sweep"])
@given(data=st.data())
def test_settings(tmp_path: Path, data: st.DataObject, document: dict[str, Any], ending: str) -> None:
    written = yaml.safe_dump(document).encode()
    content = data.draw(st.one_of(damaged(written), spoiled(document).map(text_of), st.binary(max_size=40)))
    path = tmp_path / f"settings.{ending}"
    path.write_bytes(content)
    with ours:
        load_sweep(path) if document is SWEEP else load_settings(path, RunConfig)


METHODS = [
    "reap:keep=0.5",
    "naee:keep=0.3/0.5/1",
    "reap:keep=[",
    "gptq:bits=4,group=32",
    "stun:pattern=2:4",
    "=:,/",
    "mone",
]


@bounded
@given(st.one_of(st.sampled_from(METHODS).flatmap(lambda text: damaged(text.encode())), st.text(max_size=20)))
def test_method_strings(text: Any) -> None:
    with ours:
        parse_method(text if isinstance(text, str) else text.decode("utf-8", "replace")).configured()


@bounded
@given(st.one_of(JSON, spoiled(json.loads(record("reap").model_dump_json(by_alias=True))), st.binary(max_size=40)))
def test_records(tmp_path: Path, document: Any) -> None:
    (tmp_path / "record.json").write_bytes(document if isinstance(document, bytes) else text_of(document))
    with ours:
        read_record(tmp_path / "record.json")


def _array(shape: tuple[int, ...], dtype: str) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.ones(shape, dtype))
    return buffer.getvalue()


@bounded
@given(data=st.data())
@pytest.mark.parametrize("ending", [".json", ".npy", ".safetensors", ".txt"])
def test_corpora(tmp_path: Path, data: st.DataObject, ending: str) -> None:
    whole = {".json": b"[[1, 2], [3, 4]]", ".npy": _array((2, 4), "int64"), ".safetensors": SHARD, ".txt": b"w1 w2\n"}
    (tmp_path / f"ids{ending}").write_bytes(data.draw(st.one_of(damaged(whole[ending]), JSON.map(text_of))))
    with ours:
        parse(str(tmp_path / f"ids{ending}"), Checkpoint.open(tiny_checkpoint("mixtral")), 1, 2)


@bounded
@given(
    st.one_of(st.text(max_size=12), st.sampled_from(["a" * 300, "/" * 5000, "pocket:", "datasets:", "+", "a+pocket:x"]))
)
def test_names_of_corpora_and_checkpoints(name: str) -> None:
    with ours:
        parse(name, Checkpoint.open(tiny_checkpoint("mixtral")), 1, 2)
    with ours:
        local_folder(Path(name))


@pytest.mark.parametrize(
    "header", [b"{'descr'[: '<i8'}", b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,)}"]
)
def test_arrays_with_headers_that_numpy_stumbles_over(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "ids.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ConfigError, match="cannot be read"):
        parse(str(tmp_path / "ids.npy"), Checkpoint.open(tiny_checkpoint("mixtral")), 1, 2)


def test_what_is_spoiled_here_is_sound_before(tmp_path: Path) -> None:
    """Else every example would fail at the same place and try nothing."""
    for config in CONFIGS:
        family_of(config | {"per_layer_config": None}).inventory(config | {"per_layer_config": None})
    for document, read in ((SETTINGS, lambda path: load_settings(path, RunConfig)), (SWEEP, load_sweep)):
        (tmp_path / "settings.yaml").write_text(yaml.safe_dump(document))
        read(tmp_path / "settings.yaml")
    for text in METHODS[:2]:
        parse_method(text).configured()
    (tmp_path / "record.json").write_text(record("reap").model_dump_json(by_alias=True))
    read_record(tmp_path / "record.json")
    (tmp_path / SINGLE).write_bytes(SHARD)
    assert set(read_header(tmp_path / SINGLE)) == {"a.weight", "b.weight"}
    config = CONFIGS[FAMILIES.index("mixtral")] | {"per_layer_config": None}
    Plan(family="mixtral", layers=LAYERS).validate_for(family_of(config).inventory(config))
