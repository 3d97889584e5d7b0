"""Combiners: from the K gradients of a step to one direction.

`gramian` and `losses` make weights, `gradients` directions, `solvers` numbers; `_types`
has the two types. They may import the pure functions of the library and
`_absent_tasks`, but no perturbation and nothing of a step.
"""
