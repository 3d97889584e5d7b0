"""Problems: a data set with its network, its tasks' losses and metrics, and a recipe.

Imports `data` and `networks` of the experiments.
"""
