"""The laws that every method obeys, as functions that anyone can run: ``moebench check METHOD``."""

from bench.laws.check import Outcome, check

__all__ = ["Outcome", "check"]
