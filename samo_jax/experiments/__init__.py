"""Experiments: `python -m samo_jax.experiments digits`. Needs the `experiments` extra.

A newcomer's way in: in `benchmarks`, `training.py` is the loop, `methods.py` the
optimisers, `generated.py` the tasks, data and networks, `report.py` the table and page.
"""
