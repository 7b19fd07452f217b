"""Where this checkout lies, and what may lie beside it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The folder of the project."""

SHARED = ROOT.parent / "shared"
"""Real tasks, texts and configs that are not part of the project; tests that use them are skipped where it is absent."""
