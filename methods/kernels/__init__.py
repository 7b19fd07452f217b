"""Tensor kernels: routing, the routed expert pass and the moments that are taken inside it."""
