"""Training: methods by their text, the trainer, and the folders that runs leave behind.

Imports `problems`, `data` and `networks` of the experiments.
"""
