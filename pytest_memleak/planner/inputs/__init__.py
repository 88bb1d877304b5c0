"""Batches to train a model with for a look at its memory, made from the sizes in its config alone."""

from pytest_memleak.planner.inputs.making import Kind, batch, kinds

__all__ = ["Kind", "batch", "kinds"]
