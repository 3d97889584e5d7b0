"""Tables and files of results, the same for every experiment."""

import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text
from scipy.special import stdtrit

from samo_jax.experiments.schema import conform, read, shown

RESULTS = "results.json"
T = TypeVar("T")


def decimals_of(value: float) -> int:
    """The number of decimals to print: up to four, of NaN and infinity one."""
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
    """Half the width of the 95 % confidence interval of a mean."""
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
    folder: Path,
    kind: type[T],
    methods: Collection[str] | None = None,
    seeds: int | None = None,
    check: Callable[[Any, T], str | None] = lambda _settings, _run: None,
    settings: type[Any] | None = None,
) -> tuple[Any, dict[str, dict[int, T]]]:
    """The rows that `save` has written, empty where it has not.

    Args:
        folder: folder of the file.
        kind: type of each run, a `NamedTuple`.
        methods: methods that there may be; None: any.
        seeds: number of seeds that there may be; None: any.
        check: function of the settings and a run to its fault, or None.
        settings: the settings that are wanted, a `NamedTuple`; None: none.

    Returns:
        The settings, None where there are none, and the runs by method and seed.

    Raises:
        SystemExit: in one line, if it is damaged, or has other runs.
    """
    path = folder / RESULTS
    if not path.exists():
        return None, {}
    try:
        document = conform(read(path), _Document, "it")
        wanted = settings._fields if settings else ()
        found = {key: of for key, of in document.config.items() if key in wanted}
        config = conform(found, settings, "config") if settings else None
        results: dict[str, dict[int, T]] = {}
        for number, fields in enumerate(document.runs):
            name = f"runs[{number}]"
            method, seed, run = _run(fields, kind, name)
            if methods is not None and method not in methods:
                raise ValueError(f"{name} has a method of another run, {shown(method)}")
            if seed < 0 or (seeds is not None and seed >= seeds):
                raise ValueError(f"{name} has a seed of another run, {seed}")
            of_method = results.setdefault(method, {})
            wrong = "it is there twice" if seed in of_method else check(config, run)
            if wrong:
                raise ValueError(f"{name} ({shown(method)}, seed {seed}): {wrong}")
            of_method[seed] = run
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"{path} cannot be read: {error}. Without it, --resume trains anew"
        ) from None
    return config, results


class _Document(NamedTuple):
    """A file of results."""

    config: dict[str, Any]
    runs: list[dict[str, Any]]


class _Key(NamedTuple):
    """Key that a run is found by."""

    method: str
    seed: int


def _run(fields: dict[str, Any], kind: type[T], name: str) -> tuple[str, int, T]:
    """Method, seed, and what they came to."""
    key = {of: fields.pop(of) for of in ("method", "seed") if of in fields}
    method, seed = conform(key, _Key, name)
    return method, seed, conform(fields, kind, name)
