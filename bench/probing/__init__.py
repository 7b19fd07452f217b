"""Parts of the probe; ``bench.probing.model_probe`` puts them together."""
