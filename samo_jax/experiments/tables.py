"""Tables and files of results, the same for every experiment."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table


def spread(values: Any, decimals: int | None = None) -> str:
    """Mean +- sample standard deviation over seeds.

    Without `decimals`, small numbers get up to four.

    >>> spread([97.1, 97.3]), spread([0.0123, 0.0127]), spread([-0.01], 1)
    ('97.2 ± 0.1', '0.0125 ± 0.0003', '0.0')
    """
    mean = float(np.mean(values))
    if decimals is None:
        decimals = int(np.clip(2 - np.floor(np.log10(abs(mean) or 1)), 1, 4))
    text = f"{np.round(mean, decimals) + 0.0:.{decimals}f}"  # no "-0.0"
    if len(values) == 1:
        return text
    return f"{text} ± {np.std(values, ddof=1):.{decimals}f}"


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


def save(
    folder: Path, config: dict[str, Any], results: Mapping[str, Mapping[int, Any]]
) -> None:
    """Write `results.json` in one piece, so that an interrupt cannot tear it."""
    document = {
        "config": config,
        "runs": [
            {"method": method, "seed": seed, **run._asdict()}
            for method, runs in results.items()
            for seed, run in runs.items()
        ],
    }
    partial = folder / "results.json.partial"
    partial.write_text(json.dumps(document, indent=1))
    os.replace(partial, folder / "results.json")
