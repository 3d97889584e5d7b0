"""The table and the picture of a benchmark."""

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

import samo_jax
from samo_jax.experiments.benchmarks.methods import (
    PLAIN_MEAN,
    SHARPNESS,
    SINGLE_TASK,
    split,
)
from samo_jax.experiments.benchmarks.tasks import Task
from samo_jax.experiments.benchmarks.training import Metrics, Run
from samo_jax.experiments.tables import markdown_table, spread

Results = dict[str, dict[int, Run]]  # by method, by seed

_STYLES = dict(zip(SHARPNESS, ("-", "--", ":"), strict=True))
_MOST_COLUMNS = 12


class Column(NamedTuple):
    """One metric of one task."""

    task: str
    metric: str
    higher_is_better: bool


def columns(tasks: dict[str, Task]) -> list[Column]:
    """All metrics of all tasks."""
    return [
        Column(name, metric, higher_is_better)
        for name, task in tasks.items()
        for metric, higher_is_better in task.higher_is_better.items()
    ]


def values(columns: list[Column], metrics: list[Metrics]) -> np.ndarray:
    """Shape (runs, columns)."""
    return np.array([[of[c.task][c.metric] for c in columns] for of in metrics])


def baseline(results: Results) -> str:
    """What Delta m is relative to: single-task training, else the first method."""
    return SINGLE_TASK if SINGLE_TASK in results else next(iter(results))


def delta_m(results: Results, tasks: dict[str, Task]) -> dict[str, np.ndarray]:
    """Delta m in percent by method, shape (seeds,)."""
    chosen = columns(tasks)
    finals = {
        method: values(chosen, [run.metrics for run in runs.values()])
        for method, runs in results.items()
    }
    reference = finals[baseline(results)].mean(axis=0)
    higher_is_better = np.array([column.higher_is_better for column in chosen])
    return {
        method: np.asarray(
            samo_jax.delta_m(final, reference, higher_is_better=higher_is_better)
        )
        for method, final in finals.items()
    }


def _seconds(runs: dict[int, Run]) -> float:
    return float(np.median([run.seconds_per_step for run in runs.values()]))


def summarize(results: Results, tasks: dict[str, Task]) -> list[list[str]]:
    """The table's cells, header first, a row a method.

    Of many metrics, those of one name are averaged over tasks. Time is "-" without the
    run it is relative to.
    """
    chosen = columns(tasks)
    groups = {f"{c.task} {c.metric}": [k] for k, c in enumerate(chosen)}
    if len(chosen) > _MOST_COLUMNS:
        groups = {}
        for k, column in enumerate(chosen):
            groups.setdefault(f"mean {column.metric}", []).append(k)
    header = [name.replace("_", " ") for name in groups]
    table = [["method", *header, "Δm %", "time"]]
    deltas, plain = delta_m(results, tasks), results.get(PLAIN_MEAN)
    for method, runs in results.items():
        final = values(chosen, [run.metrics for run in runs.values()])
        cells = [spread(final[:, index].mean(axis=1)) for index in groups.values()]
        time = f"{_seconds(runs) / _seconds(plain):.2f}" if plain else "-"
        table.append([method, *cells, spread(deltas[method], 1), time])
    return table


def plot(results: Results, tasks: dict[str, Task], path: Path) -> None:
    """Training loss, and final Delta m with its spread over seeds.

    A method's colour is its combiner's; the right-hand labels tell which.
    """
    figure, (curves, final) = plt.subplots(
        1, 2, figsize=(12, max(4.6, 0.24 * len(results))), layout="constrained"
    )
    colors = _combiner_colors(results)
    used = set()
    deltas = delta_m(results, tasks)
    for position, (method, runs) in enumerate(results.items()):
        combiner, sharpness = split(method)
        used.add(sharpness)
        color = colors[combiner]
        losses = np.mean([run.loss_curve for run in runs.values()], axis=0)
        epochs = np.arange(1, len(losses) + 1)
        curves.semilogy(epochs, losses, _STYLES[sharpness], color=color)
        delta = deltas[method]
        final.scatter(delta, [position] * len(delta), color=color, alpha=0.4)
        final.plot(delta.mean(), position, "|", color=color, ms=12, mew=3)
    curves.set(xlabel="epoch", ylabel="mean training loss")
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    for sharpness in SHARPNESS:
        if sharpness in used:
            curves.plot([], [], _STYLES[sharpness], color="grey", label=sharpness)
    curves.legend()
    final.axvline(0, color="grey", lw=0.8)
    final.set(
        xlabel=f"Δm against {baseline(results)}, %, lower is better "
        "(dots: seeds, bars: means)"
    )
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


def write_report(
    folder: Path, results: Results, tasks: dict[str, Task], caption: str
) -> None:
    """Write `table.md` and `summary.png`."""
    (folder / "table.md").write_text(
        f"{markdown_table(summarize(results, tasks))}\n{caption}\n"
    )
    plot(results, tasks, folder / "summary.png")
