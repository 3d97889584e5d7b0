"""Combiners that need the gradients themselves, one file per method.

They may import the types of combiners and what `losses` says of usable losses.
"""
