"""The address of ``load_model``: code that loads compressed checkpoints by ``bench.load`` finds it here."""

from bench.models.load import load_model as load_model
