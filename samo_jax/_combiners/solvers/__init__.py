"""Numerical cores: non-negative QP, alpha-fair Newton, and their preprocessing.

They know Gramians and weights alone. They may import one another and arithmetic, and
no combiner.
"""
