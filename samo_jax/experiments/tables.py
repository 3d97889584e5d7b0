"""Tables and files of results, the same for every experiment."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich import box
from rich.table import Table
from scipy.special import stdtrit

RESULTS = "results.json"
T = TypeVar("T")


def decimals_of(value: float) -> int:
    """How many to print: of small numbers up to four."""
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
    """Of the 95 % confidence interval of the mean of two or more values."""
    count = len(values)
    return stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(count)


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


def markdown_table(rows: list[list[str]]) -> str:
    """The rows, header first, in Markdown."""
    header, *body = rows
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def terminal_table(rows: list[list[str]], caption: str) -> Table:
    """The rows, header first, for a terminal."""
    table = Table(
        box=box.SIMPLE, pad_edge=False, caption=caption, caption_justify="left"
    )
    header, *body = rows
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left")
    for row in body:
        # Headers may be broken into lines, cells may not.
        table.add_row(*(cell.replace(" ", "\N{NO-BREAK SPACE}") for cell in row))
    return table


def replace(path: Path, text: str) -> None:
    """Write a file in one piece, so that an interrupt cannot tear it."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def save(
    folder: Path, config: dict[str, Any], results: Mapping[str, Mapping[int, Any]]
) -> None:
    """Write `results.json`: settings, and runs by method and seed."""
    document = {
        "config": config,
        "runs": [
            {"method": method, "seed": seed, **run._asdict()}
            for method, runs in results.items()
            for seed, run in runs.items()
        ],
    }
    replace(folder / RESULTS, json.dumps(document, indent=1))


def load(
    folder: Path, make_run: Callable[..., T]
) -> tuple[dict[str, Any], dict[str, dict[int, T]]]:
    """What `save` has written, nothing where it has not."""
    path = folder / RESULTS
    if not path.exists():
        return {}, {}
    document = json.loads(path.read_text())
    results: dict[str, dict[int, T]] = {}
    for run in document["runs"]:
        method, seed = run.pop("method"), run.pop("seed")
        results.setdefault(method, {})[seed] = make_run(**run)
    return document["config"], results
