"""Local twins of lm-eval's own tasks, reading the JSON lines of a folder instead of the hub.

    python -m tests.support.real_tasks DATA_DIR OUT_DIR

writes one YAML for each task below; DATA_DIR holds ``<task>/<split>.jsonl`` in the field names of the hub's data sets.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lm_eval.tasks
import yaml

from tests.support.places import SHARED

BLIMP = "regular_plural_subject_verb_agreement_1"
TASKS: dict[str, tuple[str, dict[str, str]]] = {
    "arc_easy": ("arc/arc_easy.yaml", {"test": "arc_easy/test.jsonl", "train": "arc_easy/train.jsonl"}),
    "piqa": ("piqa/piqa.yaml", {"validation": "piqa/validation.jsonl"}),
    "lambada_openai": ("lambada/lambada_openai.yaml", {"test": "lambada_openai/test.jsonl"}),
    "wikitext": ("wikitext/wikitext.yaml", {"test": "wikitext/test.jsonl"}),
    f"blimp_{BLIMP}": (f"blimp/{BLIMP}.yaml", {"train": f"blimp/{BLIMP}.jsonl"}),
}
"""For each task: the harness's own file, and its data file per split."""

_UNUSED_SPLITS = {
    "arc_easy": ("validation_split",),
    "piqa": ("training_split",),
    "wikitext": ("training_split", "validation_split"),
}


def data_folder() -> Path:
    """Return where the evaluation data lies beside a checkout; it is not part of the project."""
    return SHARED / "data"


def write_tasks(data: Path, out: Path) -> list[str]:
    """Write the YAML files to ``out`` and return the task names, each with the suffix ``_local``."""
    out.mkdir(parents=True, exist_ok=True)
    package = Path(lm_eval.tasks.__file__).parent
    names = []
    for task, (yaml_file, splits) in TASKS.items():
        document: dict[str, object] = {
            "include": str(package / yaml_file),
            "task": f"{task}_local",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(data / "tasks" / file) for split, file in splits.items()}},
            "tag": [],
        }
        document |= dict.fromkeys(_UNUSED_SPLITS.get(task, ()))
        (out / f"{task}_local.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        names.append(f"{task}_local")
    return names


if __name__ == "__main__":
    print(",".join(write_tasks(Path(sys.argv[1]), Path(sys.argv[2]))))
