"""The table and the picture of the digits experiment."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator, ScalarFormatter

import samo_jax
from samo_jax.experiments.methods import (
    PLAIN_MEAN,
    SHARPNESS,
    SINGLE_TASK,
    split,
)
from samo_jax.experiments.tables import markdown_table, spread
from samo_jax.experiments.training import Run

Results = dict[str, dict[int, Run]]  # by method, by seed

_STYLES = dict(zip(SHARPNESS, ("-", "--", ":"), strict=True))


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
            delta = spread(
                samo_jax.delta_m(accuracies, reference, higher_is_better=True)
            )
        if plain:
            time = f"{_seconds(runs) / _seconds(plain):.2f}"
        per_task = [spread(column) for column in accuracies.T]
        table.append([method, *per_task, spread(accuracies.mean(axis=1)), delta, time])
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


def write_report(folder: Path, results: Results, caption: str) -> None:
    """Write `table.md` and `accuracy.png`."""
    (folder / "table.md").write_text(
        f"{markdown_table(summarize(results))}\n{caption}\n"
    )
    plot(results, folder / "accuracy.png")
