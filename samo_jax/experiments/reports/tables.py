"""Tables of results, the same for every study."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text
from scipy.special import stdtrit


def decimals_of(value: float) -> int:
    """Number of decimals to print: of small numbers up to four, of NaN one."""
    if not np.isfinite(value):
        return 1
    return int(np.clip(2 - np.floor(np.log10(abs(value) or 1)), 1, 4))


def spread(values: Any, decimals: int | None = None) -> str:
    """Mean +- sample standard deviation over seeds.

    Without `decimals`, small numbers get up to four.

    >>> spread([97.1, 97.3]), spread([0.0123, 0.0127]), spread([-0.01], 1)
    ('97.2 ± 0.1', '0.0125 ± 0.0003', '0.0')
    """
    return _plus_minus(values, lambda values: np.std(values, ddof=1), decimals)


def interval(values: Any, decimals: int | None = None) -> str:
    """Mean +- half the width of its 95 % confidence interval, by the t distribution.

    >>> interval([97.1, 97.3]), interval([1.0])
    ('97.2 ± 1.3', '1.00')
    """
    return _plus_minus(values, half_width, decimals)


def half_width(values: Any) -> float:
    """Half width of the 95 % confidence interval of the mean of two or more values."""
    count = len(values)
    return stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(count)


@np.errstate(invalid="ignore", over="ignore")  # of runs that diverged
def _plus_minus(
    values: Any, error: Callable[[Any], float], decimals: int | None
) -> str:
    mean = float(np.mean(values))
    if decimals is None:
        decimals = decimals_of(mean)
    text = f"{np.round(mean, decimals) + 0.0:.{decimals}f}"  # no "-0.0"
    if len(values) == 1:
        return text
    return f"{text} ± {error(values):.{decimals}f}"


def counted(number: int, what: str) -> str:
    """A number of things in words.

    >>> counted(1, "seed"), counted(3, "epoch")
    ('1 seed', '3 epochs')
    """
    return f"{number} {what}{'s' * (number != 1)}"


def literal(text: str) -> str:
    r"""Text that stays as it is in Markdown: no link, picture, emphasis or HTML.

    >>> literal("nash_mtl"), literal("![x](y)")
    ('nash_mtl', '!\\[x\\](y)')
    """
    return re.sub(r"[\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def markdown_table(rows: list[list[str]]) -> str:
    """The rows, header first, in Markdown."""
    header, *body = [[literal(cell) for cell in row] for row in rows]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def terminal_table(rows: list[list[str]], caption: str) -> Table:
    """The rows, header first, for a terminal."""
    table = Table(
        box=box.SIMPLE, pad_edge=False, caption=Text(caption), caption_justify="left"
    )
    header, *body = rows
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="right" if index else "left")
    for row in body:
        # Headers may be broken into lines, cells may not.
        cells = (cell.replace(" ", "\N{NO-BREAK SPACE}") for cell in row)
        table.add_row(*map(Text, cells))
    return table
