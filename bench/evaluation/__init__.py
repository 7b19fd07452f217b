"""Evaluation by lm-eval: tasks, the model's side of it, and per-item results."""
