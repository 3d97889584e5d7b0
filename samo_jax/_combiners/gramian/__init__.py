"""Combiners whose weights come from the Gramian, one file per method.

They may import the types, `solvers`, and one another.
"""
