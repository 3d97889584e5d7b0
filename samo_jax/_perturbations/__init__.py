"""Perturbations: where each task's gradient is taken, one file per method.

They may import the pure functions of the library, no combiner and nothing of a step.
"""
