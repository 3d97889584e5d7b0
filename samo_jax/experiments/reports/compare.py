"""Comparison of finished runs of one benchmark: intervals, and paired differences."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from samo_jax.experiments.command import make_console
from samo_jax.experiments.reports.scores import (
    delta_m,
    delta_m_caption,
    finals,
    grouped,
)
from samo_jax.experiments.reports.tables import (
    decimals_of,
    interval,
    literal,
    markdown_table,
    terminal_table,
)
from samo_jax.experiments.training.columns import Column, fault
from samo_jax.experiments.training.folders import path, results_folder, run_folder
from samo_jax.experiments.training.results import load
from samo_jax.experiments.training.runs import Results, Run
from samo_jax.experiments.training.schema import shown

DESCRIPTION = """\
Compare the methods in folders of finished runs of one benchmark: means over seeds with
95 % confidence intervals, and differences to one of the methods, seed by seed."""


class Alike(NamedTuple):
    """Settings that runs must share to be compared.

    Attributes:
        benchmark: name of the benchmark.
        split: split that was evaluated on.
        columns: the metrics of all tasks.
    """

    benchmark: str
    split: str
    columns: list[Column]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "runs", nargs="+", type=run_folder, metavar="RUN", help="folder of a run"
    )
    parser.add_argument(
        "--baseline",
        metavar="METHOD",
        help="which differences are to, named as in the table (default: the first)",
    )
    parser.add_argument("--out", type=path, help="folder for comparison.md")


def run(args: argparse.Namespace) -> int:
    """Print the tables, and write them where asked; return the exit status."""
    (benchmark, split, columns), results = gather(args.runs)
    method = args.baseline or next(iter(results))
    if method not in results:
        raise SystemExit(
            f"--baseline: there is no {method!r}, only {', '.join(map(repr, results))}"
        )
    tables = compare(results, columns, method)
    caption = (
        f"{benchmark}, {split} examples: mean over seeds ± half of "
        "its 95 % confidence interval, by the t distribution. "
        f"{delta_m_caption(columns, results)} "
        f"Minus {method}: over the seeds that both have."
    )
    console = make_console(160)
    for table, text in zip(tables, ("", caption), strict=True):
        console.print(terminal_table(table, text))
    if args.out:
        file = results_folder(args.out, "compare") / "comparison.md"
        page = [*map(markdown_table, tables), literal(caption), ""]
        file.write_text("\n".join(page))
        console.print(f"Saved {file}")
    return 0


def gather(folders: Sequence[Path]) -> tuple[Alike, Results]:
    """The settings that all runs share, and the methods of all folders.

    A method that is in several is named with its folder.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise SystemExit("RUN: a folder is given twice; give each once")
    loaded = {}
    for folder in folders:
        alike, results = load(
            folder, Run, check=lambda of, run: fault(of.columns, run), settings=Alike
        )
        if not results:
            raise SystemExit(
                f"{folder}: no run has finished; go on with it: --resume {folder}"
            )
        loaded[folder] = alike, results
    first, (alike, _) = next(iter(loaded.items()))
    for folder, (other, _) in loaded.items():
        for key, ours, theirs in zip(Alike._fields, alike, other, strict=True):
            if ours != theirs:
                raise SystemExit(
                    f"{folder} has {key} {shown(theirs)}, but {first} {shown(ours)}: "
                    "compare runs of one benchmark and split"
                )
    count = Counter(method for _, results in loaded.values() for method in results)
    return alike, {
        method if count[method] == 1 else f"{method} ({folder})": runs
        for folder, (_, results) in loaded.items()
        for method, runs in results.items()
    }


@np.errstate(invalid="ignore", over="ignore")  # of runs that diverged
def compare(
    results: Results, columns: list[Column], method: str
) -> tuple[list[list[str]], list[list[str]]]:
    """Two tables' cells, header first: all methods, and differences to one of them."""
    groups = grouped(columns)
    deltas = delta_m(columns, results)

    def rows(of):
        final = finals(columns, results[of])
        means = [final[:, index].mean(axis=1) for index in groups.values()]
        return dict(zip(results[of], np.transpose([*means, deltas[of]]), strict=True))

    scores = {of: rows(of) for of in results}  # by seed: a number for each column
    digits = [decimals_of(x) for x in np.mean(list(scores[method].values()), axis=0)]
    digits[-1] = 2

    def cells(of, values):
        pairs = zip(np.transpose(values), digits, strict=True)
        return [of, str(len(values)), *(interval(*pair) for pair in pairs)]

    def differences(of):
        common = scores[of].keys() & scores[method].keys()
        if not common:
            return [of, "0", *["-"] * len(digits)]
        return cells(of, [scores[of][seed] - scores[method][seed] for seed in common])

    header = ["seeds", *groups, "Δm [%]"]
    return (
        [["method", *header]] + [cells(of, list(scores[of].values())) for of in scores],
        [[f"minus {method}", *header]]
        + [differences(of) for of in scores if of != method],
    )
