"""Parts of the probe; ``bench.probe`` puts them together."""
