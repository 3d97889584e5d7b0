"""One training step, from a problem to its direction: see docs/design.md.

`_step` chooses a way: `_all_gradients`, `_weights_first` or `_gramian_blocks`.
It may import methods (`_perturbations`, `_combiners`) and all that they may import;
`_multitask` and what stands on it import this package.
"""
