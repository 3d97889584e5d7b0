"""Tables and files of results, the same for every experiment."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table


def spread(values: Any) -> str:
    """Mean +- sample standard deviation over seeds."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    mean = np.round(np.mean(values), 1) + 0.0  # no "-0.0"
    return f"{mean:.1f} ± {np.std(values, ddof=1):.1f}"


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
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in body:
        table.add_row(*row)
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
