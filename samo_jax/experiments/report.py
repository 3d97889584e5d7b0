"""Tables and pictures from finished runs."""

import json
import os
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from rich import box
from rich.table import Table

import samo_jax
from samo_jax.experiments.methods import (
    PLAIN_MEAN,
    SHARPNESS,
    SINGLE_TASK,
    split,
)
from samo_jax.experiments.training import Run

Results = dict[str, dict[int, Run]]  # by method, by seed

_STYLES = dict(zip(SHARPNESS, ("-", "--", ":"), strict=True))


def _spread(values) -> str:
    """Mean +- sample standard deviation over seeds."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    mean = np.round(np.mean(values), 1) + 0.0  # no "-0.0"
    return f"{mean:.1f} ± {np.std(values, ddof=1):.1f}"


def _accuracies(runs: dict[int, Run]) -> np.ndarray:
    """Accuracy in percent, shape (seeds, tasks)."""
    return 100 * np.array([list(run.accuracy.values()) for run in runs.values()])


def _seconds(runs: dict[int, Run]) -> float:
    return float(np.median([run.seconds_per_step for run in runs.values()]))


def summarize(results: Results) -> list[list[str]]:
    """The table's cells, header first, a row a method.

    Delta m and time are "-" without the runs they are relative to.
    """
    baseline, plain = results.get(SINGLE_TASK), results.get(PLAIN_MEAN)
    tasks = next(iter(next(iter(results.values())).values())).accuracy
    table = [["method", *(f"{t} %" for t in tasks), "mean %", "Δm %", "time"]]
    for method, runs in results.items():
        accuracies = _accuracies(runs)
        delta = time = "-"
        if baseline:
            reference = _accuracies(baseline).mean(axis=0)
            delta = _spread(
                samo_jax.delta_m(accuracies, reference, higher_is_better=True)
            )
        if plain:
            time = f"{_seconds(runs) / _seconds(plain):.2f}"
        per_task = [_spread(column) for column in accuracies.T]
        table.append([method, *per_task, _spread(accuracies.mean(axis=1)), delta, time])
    return table


def markdown_table(results: Results) -> str:
    """The table in Markdown."""
    header, *rows = summarize(results)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def terminal_table(results: Results, caption: str) -> Table:
    """The table for a terminal."""
    table = Table(
        box=box.SIMPLE, pad_edge=False, caption=caption, caption_justify="left"
    )
    header, *rows = summarize(results)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def plot(results: Results, path: Path) -> None:
    """Error through training, and final accuracy with its spread over seeds.

    A method's colour is its combiner's; the right-hand labels tell which.
    """
    figure, (curves, final) = plt.subplots(
        1, 2, figsize=(12, max(4.6, 0.24 * len(results))), layout="constrained"
    )
    colors = _combiner_colors(results)
    used = set()
    for position, (method, runs) in enumerate(results.items()):
        combiner, sharpness = split(method)
        used.add(sharpness)
        color = colors[combiner]
        epochs, means = np.mean([run.accuracy_curve for run in runs.values()], axis=0).T
        curves.semilogy(epochs, 100 * (1 - means), _STYLES[sharpness], color=color)
        accuracy = _accuracies(runs).mean(axis=1)
        final.scatter(accuracy, [position] * len(accuracy), color=color, alpha=0.4)
        final.plot(accuracy.mean(), position, "|", color=color, ms=12, mew=3)
    curves.set(xlabel="epoch", ylabel="mean error, %")
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.yaxis.set_major_formatter(ScalarFormatter())
    curves.yaxis.set_minor_formatter(ScalarFormatter())
    for sharpness in SHARPNESS:
        if sharpness in used:
            curves.plot([], [], _STYLES[sharpness], color="grey", label=sharpness)
    curves.legend()
    final.set(xlabel="final mean accuracy, % (dots: seeds, bars: means)")
    final.set_yticks(range(len(results)), list(results))
    for label, method in zip(final.get_yticklabels(), results, strict=True):
        label.set_color(colors[split(method)[0]])
    final.invert_yaxis()
    final.margins(y=0.5 / len(results))
    for axes in (curves, final):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _combiner_colors(results: Results) -> dict[str, Any]:
    combiners = list(dict.fromkeys(split(method)[0] for method in results))
    if len(combiners) <= 10:
        return {combiner: f"C{index}" for index, combiner in enumerate(combiners)}
    spectrum = plt.get_cmap("turbo")(np.linspace(0, 1, len(combiners)))
    return dict(zip(combiners, spectrum, strict=True))


def save(folder: Path, config: dict[str, Any], results: Results) -> None:
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


def write_report(folder: Path, results: Results, caption: str) -> None:
    """Write `table.md` and `accuracy.png`."""
    (folder / "table.md").write_text(f"{markdown_table(results)}\n{caption}\n")
    plot(results, folder / "accuracy.png")
