"""Serving processes: one process imports vLLM once, and every model gets its own fork of it."""
