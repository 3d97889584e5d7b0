"""The table, the picture and the page of the study of local parts."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

import samo_jax
from samo_jax.experiments.problems.tasks import Task
from samo_jax.experiments.reports.axes import mark_epochs
from samo_jax.experiments.reports.machine import machine
from samo_jax.experiments.reports.pages import built_block, write_page
from samo_jax.experiments.reports.tables import literal, markdown_table, spread
from samo_jax.experiments.studies.local_parts.costs import Cost
from samo_jax.experiments.studies.local_parts.directions import DIRECTIONS
from samo_jax.experiments.studies.local_parts.methods import (
    COMPARED,
    GLOBAL,
    PLAIN,
    label_of,
)
from samo_jax.experiments.training.methods import SINGLE_TASK
from samo_jax.experiments.training.runs import Results, Run

PICTURE = "local_parts.png"


class Outcome(NamedTuple):
    """Outcome of one problem.

    Attributes:
        tasks: tasks by name.
        runs: runs by method and seed.
        costs: costs by method.
        rhos: the best radii, by method.
        built: the calls of the methods.
    """

    tasks: Mapping[str, Task]
    runs: Results
    costs: Mapping[str, Cost]
    rhos: Mapping[str, float]
    built: Mapping[str, str]

    def errors(self, method: str) -> np.ndarray:
        """Errors of the tasks in percent, shape (seeds, tasks)."""
        return np.array(
            [
                [of for _, of in sorted(task_errors(run, self.tasks).items())]
                for run in self.runs[method].values()
            ]
        )

    def cosines(self, method: str) -> np.ndarray:
        """Cosines of the directions, shape (seeds, evaluations, directions)."""
        return np.array(
            [
                [[of["directions"][name] for name in DIRECTIONS] for _, of in curve]
                for run in self.runs[method].values()
                for curve in [run.agreement_curve]
            ]
        )


def task_errors(run: Run, tasks: Mapping[str, Task]) -> dict[str, float]:
    """Each task's only metric, in percent, lower is better."""
    errors = {}
    for task, metrics in run.metrics.items():
        [(metric, value)] = metrics.items()
        better = tasks[task].higher_is_better[metric]
        errors[task] = 100 - value if better else value
    return errors


def summarize(outcome: Outcome) -> list[list[str]]:
    """Cells of the table of one problem, header first, a row a method."""
    cosines = ["cos local", "cos whole", "cos g0"]
    costs_of = ["passes", "time", "memory [MB]"]
    header = ["method", "rho", "error [%]", "Δm [%]", "to global", *cosines, *costs_of]
    table = [header]
    baseline = outcome.errors(SINGLE_TASK).mean(axis=0)
    for method in outcome.runs:
        errors = outcome.errors(method)
        rho = outcome.rhos.get(method)
        cells = [label_of(method), "-" if rho is None else f"{rho:g}"]
        cells.append(spread(errors.mean(axis=1), 1))
        cells.append(spread(samo_jax.delta_m(errors, baseline), 1))
        if GLOBAL in outcome.runs:
            to_global = (errors - outcome.errors(GLOBAL)).mean(axis=1)
            cells.append(spread(to_global, 1))
        else:
            cells.append("-")
        found = outcome.cosines(method)
        means = found.mean(axis=(0, 1)) if found.size else []
        cells += [f"{mean:.2f}" for mean in means] or ["-"] * 3
        table.append(cells + _cost_cells(outcome.costs, method))
    return table


def _cost_cells(costs: Mapping[str, Cost], method: str) -> list[str]:
    if method not in costs:
        return ["-"] * 3
    units, temporary_bytes, milliseconds = costs[method]
    plain = costs.get(PLAIN)
    return [
        "-" if units is None else f"{units}",
        f"{milliseconds / plain.milliseconds:.2f}" if plain else "-",
        f"{temporary_bytes / 2**20:.3g}",
    ]


def write_report(folder: Path, outcomes: Mapping[str, Outcome], caption: str) -> None:
    """Write `report.md` and `report.html`, and their picture.

    Args:
        folder: folder of the files.
        outcomes: outcomes of the problems, by title.
        caption: caption of the tables.
    """
    plot(outcomes, folder / PICTURE)
    parts = [f"![Errors against time, and cosines through training]({PICTURE})"]
    for title, outcome in outcomes.items():
        parts += [f"## {title}", markdown_table(summarize(outcome))]
        parts += [built_block(outcome.built)]
    parts += [literal(caption), f"On {machine('samo_jax', 'jax', 'optax', 'flax')}"]
    title = "SAMO's local parts compared"
    write_page(folder, title, "\n\n".join(parts) + "\n", [PICTURE])


def plot(outcomes: Mapping[str, Outcome], path: Path) -> None:
    """Pictures of each problem: error against time, and the local parts' cosines."""
    figure, axes = plt.subplots(
        2,
        len(outcomes),
        figsize=(5.2 * len(outcomes), 8.4),
        layout="constrained",
        squeeze=False,
    )
    methods = dict.fromkeys(name for of in outcomes.values() for name in of.runs)
    spectrum = plt.get_cmap("tab20")
    colors = {name: spectrum(i % 20) for i, name in enumerate(methods)}
    for (title, outcome), (above, below) in zip(outcomes.items(), axes.T, strict=True):
        _plot_errors(above, outcome, colors)
        above.set_title(title)
        _plot_cosines(below, outcome, colors)
    axes[0, 0].set_ylabel("error [%] (bars: standard error)")
    axes[1, 0].set_ylabel("cosine of the local part with the task's gradient")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _plot_errors(axes: Axes, outcome: Outcome, colors: Mapping[str, tuple]) -> None:
    first = next(iter(outcome.costs))
    for name, cost in outcome.costs.items():
        errors = outcome.errors(name).mean(axis=1)
        axes.errorbar(
            cost.milliseconds / outcome.costs[first].milliseconds,
            errors.mean(),
            errors.std() / max(len(errors) - 1, 1) ** 0.5,
            fmt="s" if name in COMPARED else "o",
            color=colors[name],
            label=label_of(name),
        )
    axes.set(xlabel=f"time of a step, relative to {label_of(first)}", xscale="log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.grid(alpha=0.3)


def _plot_cosines(axes: Axes, outcome: Outcome, colors: Mapping[str, tuple]) -> None:
    for name, runs in outcome.runs.items():
        cosines = outcome.cosines(name)
        if cosines.size:
            epochs = [epoch for epoch, _ in next(iter(runs.values())).agreement_curve]
            local = cosines[..., DIRECTIONS.index("local")].mean(axis=0)
            marker = "" if len(epochs) > 1 else "o"  # of one epoch there is no line
            axes.plot(epochs, local, marker=marker, color=colors[name])
    if not axes.has_data():  # of methods that perturb nothing
        axes.set_axis_off()
        return
    axes.set_yscale("symlog", linthresh=0.01)
    mark_epochs(axes)
    axes.grid(alpha=0.3)
