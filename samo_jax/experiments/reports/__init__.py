"""Reports: what finished training comes to, as scores, tables, pictures and pages.

Imports `training`, `problems`, `data` and `networks` of the experiments.
"""
