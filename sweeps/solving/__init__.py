"""The best plans of a table of damages that add up: exact, for any budget, without running a model."""
