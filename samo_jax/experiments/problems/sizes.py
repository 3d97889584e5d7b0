"""Sizes of networks, scaled."""


def scaled(channels: int, width: float) -> int:
    """Number of channels times a factor, at least one.

    >>> scaled(64, 0.5), scaled(3, 0.001)
    (32, 1)
    """
    return max(1, round(width * channels))
