"""Combiners whose weights need no Gramian: fixed, random or of the losses.

One file per method. They may import the types of combiners and one another; nothing of
`gramian` and `gradients`.
"""
