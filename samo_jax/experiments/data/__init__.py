"""Data sets: drawn, bundled, or read from a user's files.

Imports no other package of the experiments.
"""
