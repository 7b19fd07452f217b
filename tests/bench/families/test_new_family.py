"""A family costs one file: dropped into a copy of the folder, or offered by another distribution, it is all that is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from bench.families import known_families
from methods.framework.errors import ConfigError
from tests.support.distribution import announce
from tests.support.places import ROOT

pytestmark = pytest.mark.thorough

NEW = ROOT / "bench" / "families" / "glm4_moe.toml"
"""Taken out of the copies first: neither it nor what is like it is there then."""

# Runs where the copy comes first on the path; prints what it found as JSON.
_TRIAL = """
import json, sys
from pathlib import Path

import torch

from bench.applying.apply import apply
from bench.applying.in_memory import realised
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.families.family import families, family_named, family_of
from bench.laws import decisions, realised as written_laws
from bench.laws.cases import case
from bench.models.load import check_loadable, load_model
from bench.models.tiny import RUNNABLE, tiny_checkpoint, tiny_tokens
from bench.serving.kinds import compression
from bench.serving.plugin import STOCK
from bench.serving.engine import engine_named
from bench.text.corpus import Corpus
from methods.framework.inventory import Inventory
from methods.registry import method_class

folder = Path(sys.argv[1])
rule = STOCK["Glm4MoeForCausalLM"]
found = {"families": families(), "tiny": RUNNABLE, "stock": [rule.module, rule.block]}

family = family_named("glm4_moe")
source = Checkpoint.open(tiny_checkpoint("glm4_moe", folder / "source"))
other = Checkpoint.open(tiny_checkpoint("glm4_moe", folder / "variant", **family.file.variant))
for checkpoint in (source, other):
    check_loadable(checkpoint)
found["layers"] = [[layer.mlp for layer in checkpoint.inventory.layers] for checkpoint in (source, other)]
found["router"] = [source.inventory.router.score, source.inventory.router.scale]

reap = method_class("reap")
for law in (decisions.purity, decisions.budget, decisions.relabelling, written_laws.cost_is_the_file, written_laws.reloads_alike):
    law(reap, case("glm4_moe"))

moments = calibrate(source, Corpus.of(tiny_tokens().tolist(), "random ids"), {"routed_output_mean"})
tokens = tiny_tokens(2, 16, seed=1)
found["gaps"], found["changes"], found["outcomes"] = {}, {}, {}
with torch.no_grad():
    model = load_model(source.path)
    before = model(tokens).logits
    for kind in ("counts", "sublayer", "block", "merged", "constants", "channels", "factored", "packed4"):
        plan = compression(source, kind)
        written = load_model(apply(source, plan, folder / kind, moments=moments))(tokens).logits
        with realised(model, source.inventory, plan, moments):
            inside = model(tokens).logits
        found["gaps"][kind] = float((inside - written).abs().max())
        found["changes"][kind] = float((before - written).abs().max())
        found["outcomes"][kind] = engine_named("vllm-cpu").verdict(plan, source.inventory).outcome
    assert torch.equal(model(tokens).logits, before)

offered = {"model_type": "offered", "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 9}
offered |= {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 4}
found["offered"] = family_of(offered).inventory(offered).num_experts
print(json.dumps(found))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the product that lacks the new family, and those that are like it."""
    root = tmp_path / "copy"
    for package in ("bench", "methods"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    for path in (root / "bench" / "families").glob("*.toml"):
        if path.name == NEW.name or 'like = "glm4_moe"' in path.read_text():
            path.unlink()
    return root


@pytest.fixture
def distribution(tmp_path: Path) -> Path:
    """Return a folder with a distribution that offers one more family."""
    package = tmp_path / "site" / "offering"
    package.mkdir(parents=True)
    text = (ROOT / "bench/families/olmoe.toml").read_text().partition("[vllm]")[0]
    text = text.replace('name = "olmoe"', 'name = "offered"').replace('["olmoe"]', '["offered"]')
    (package / "offered.toml").write_text(text)
    return announce(package.parent, "moebench.families", "mine", "offering")


def run(arguments: list[str], path: list[Path]) -> Any:
    """Return what a child that imports from ``path`` alone prints as JSON."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
        cwd=path[-1],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_one_file_is_a_family(copy: Path, distribution: Path, tmp_path: Path) -> None:
    shutil.copy(NEW, copy / "bench" / "families")
    found = run(["-c", _TRIAL, str(tmp_path)], [copy, distribution])
    assert {"glm4_moe", "offered", "mixtral"} <= set(found["families"])
    assert "glm4_moe" in found["tiny"] and "dots1" not in found["tiny"]
    assert found["stock"] == ["vllm.model_executor.models.glm4_moe", "Glm4MoE"]
    assert found["layers"] == [["dense", "moe", "moe"], ["moe", "moe", "moe"]]
    assert found["router"] == ["sigmoid", 1.5]
    assert max(found["gaps"].values()) < 1e-5, found["gaps"]
    assert min(found["changes"].values()) > 1e-3, "a plan that changes nothing shows nothing"
    assert found["outcomes"] == {kind: "dense" if kind == "packed4" else "served" for kind in found["outcomes"]}
    assert found["offered"] == 8, "two layers of four experts"


# Layers that differ from each other need the plug-in, which finds the family in vLLM's own processes too.
_SERVED = """
import json, sys
from pathlib import Path

from bench.checkpoint.checkpoint import Checkpoint
from bench.laws.served import TOKENS, greedy_tokens, write
from bench.models.tiny import tiny_checkpoint, tiny_tokens
from bench.timing.offline import TimingSession
from bench.settings.timing_settings import TimingProtocol

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    source = Checkpoint.open(tiny_checkpoint("glm4_moe", folder / "source"))
    prompts = tiny_tokens(3, 12, seed=5).tolist()
    agree = {}
    with TimingSession(TimingProtocol(dtype="float32", threads=1), logs=folder / "logs") as session:
        for kind in ("counts", "sublayer"):
            path = write(source, kind, folder / kind)
            agree[kind] = session.greedy(path, prompts, TOKENS) == greedy_tokens(path, prompts)
    print(json.dumps(agree))
"""


@pytest.mark.e2e
def test_the_plugin_serves_it_too(copy: Path, distribution: Path, tmp_path: Path) -> None:
    shutil.copy(NEW, distribution / "offering")
    (tmp_path / "served.py").write_text(_SERVED)
    found = run([str(tmp_path / "served.py"), str(tmp_path)], [copy, distribution])
    assert found == {"counts": True, "sublayer": True}


def offer(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    point = EntryPoint("mine", module, known_families.ENTRY_POINT_GROUP)
    monkeypatch.setattr(known_families, "entry_points", lambda group: [point])


def test_an_offer_without_a_family_or_with_a_taken_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("vacant_offer", "double_offer"):
        (tmp_path / name).mkdir()
    text = NEW.read_text().replace('"glm4_moe"', '"fresh_moe"')
    (tmp_path / "fresh.toml").write_text(text)
    (tmp_path / "path_offer.py").write_text(f"FILE = {str(tmp_path / 'fresh.toml')!r}\n")
    offer(monkeypatch, "vacant_offer")
    with pytest.raises(ConfigError, match=r"'mine' of moebench\.families gives .* holds no family file"):
        known_families.read_families.__wrapped__()
    offer(monkeypatch, "path_offer:FILE")
    assert "fresh_moe" in known_families.read_families.__wrapped__()
    for old, new, words in (
        ('name = "fresh_moe"', 'name = "olmoe"', "both have the name 'olmoe'"),
        ('["fresh_moe"]', '["mixtral"]', "both have the model type 'mixtral'"),
    ):
        (tmp_path / "double_offer" / "one.toml").write_text(text.replace(old, new))
        offer(monkeypatch, "double_offer")
        with pytest.raises(ConfigError, match=words):
            known_families.read_families.__wrapped__()


def test_families_are_read_without_torch() -> None:
    program = "import sys, bench.families.family as f; f.families(); print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
