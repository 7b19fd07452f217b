"""The tiny models live in the package, since ``moebench check`` uses them too."""

from bench.models.tiny import FAMILIES, tiny_checkpoint, tiny_config, tiny_model, tiny_tokens

__all__ = ["FAMILIES", "tiny_checkpoint", "tiny_config", "tiny_model", "tiny_tokens"]
