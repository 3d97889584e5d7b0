"""One training step, from a problem to its direction: see docs/design.md.

`_step` chooses a way, such as `_all_gradients` or `_at_shared_points`.
It may import methods (`_perturbations`, `_combiners`) and all that they may import;
`_multitask` and what stands on it import this package.
"""
