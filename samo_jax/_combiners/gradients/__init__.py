"""Combiners that need the gradients themselves (`Aggregator`), one file per method.

They may import the types of combiners, one another, and which losses are usable from
`losses`; no solver and no weighting of a Gramian.
"""
