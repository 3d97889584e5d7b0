"""Numerical cores: non-negative QP, alpha-fair Newton, and their preprocessing.

They know Gramians and weights alone, and import no method.
"""
