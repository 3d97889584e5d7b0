"""Combiners whose weights come from the Gramian (`Weighting`), one file per method.

They may import the types of combiners, `solvers`, and one another; nothing of `losses`
and `gradients`.
"""
