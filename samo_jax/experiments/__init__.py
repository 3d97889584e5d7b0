"""Experiments: `python -m samo_jax.experiments digits`. Needs the `experiments` extra.

A newcomer's way in: `training.py` is the loop, `methods.py` the optimisers, `model.py`
the network, `data.py` the images, `report.py` the pictures and tables.
"""
