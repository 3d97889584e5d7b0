"""Studies: one command each, from its options to its report.

Imports every other package of the experiments, and `command`; no study another one.
"""
