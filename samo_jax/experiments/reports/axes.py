"""Axes of pictures, the same in all of them."""

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator


def mark_epochs(axes: Axes, most: int = 9) -> None:
    """Mark whole epochs below the curves that are drawn, also where there is but one.

    Args:
        axes: axes with curves.
        most: number of marks.
    """
    low, high = axes.dataLim.intervalx
    one = FixedLocator([low]) if low == high else None
    axes.xaxis.set_major_locator(one or MaxNLocator(most, integer=True))
    axes.set_xlabel("epoch")
