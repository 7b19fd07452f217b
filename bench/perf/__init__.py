"""Benchmarks of moebench itself; each is one command that prints its bars."""
