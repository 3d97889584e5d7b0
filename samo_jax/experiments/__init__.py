"""Experiments: `python -m samo_jax.experiments digits`. Needs the `experiments` extra.

The packages import public names of `samo_jax`, and in this order one another: `data`,
`networks`, `problems`, `training`, `reports`, `studies`.
"""
