"""Compile a model's kernels before its weights are there."""
