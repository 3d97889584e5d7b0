"""One training step, from a problem to its direction.

A step is made of methods (`_perturbations`, `_combiners`) and of gradients; it may
import all of them, and is imported by `_multitask` alone.
"""
