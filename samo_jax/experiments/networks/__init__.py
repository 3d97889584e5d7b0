"""Networks in Flax, one file for each family.

Imports no other package of the experiments.
"""
