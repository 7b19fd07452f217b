"""Engines that run checkpoints, one file each: a file here that offers ``ENGINE`` is found by its name, nothing else lists it."""
