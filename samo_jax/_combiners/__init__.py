"""Combiners: from the K gradients of a step to one direction.

`gramian` and `losses` make weights, `gradients` directions, `solvers` the numbers. They
may import the pure functions of the library, no perturbation and nothing of a step.
"""
