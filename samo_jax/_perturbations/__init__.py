"""Perturbations: where each task's gradient is taken, one file per method.

`_base` has the types, `_ascent` lengths and metrics, `_joint` mixtures. They may import
the pure functions of the library and `_problem`, but no combiner and nothing of a step.
"""
