"""The tables and the picture of the local experiment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import ScalarFormatter

import samo_jax
from samo_jax.experiments.benchmarks.methods import SINGLE_TASK
from samo_jax.experiments.local.methods import CONTROL, F_MTL, GLOBAL, PLAIN
from samo_jax.experiments.local.training import Cost, Run
from samo_jax.experiments.tables import spread

Results: TypeAlias = dict[str, Any]  # by title: runs by method and seed, and costs

_COMPARED = (PLAIN, GLOBAL, "L-SAM", F_MTL, "SAMO", CONTROL)


def _errors(runs: dict[int, Run]) -> np.ndarray:
    """Shape (seeds, tasks)."""
    return np.array(
        [[run.error[task] for task in sorted(run.error)] for run in runs.values()]
    )


def _looks(runs: dict[int, Run]) -> np.ndarray:
    """Shape (seeds, looks, fields of Look)."""
    return np.array([run.looks for run in runs.values()])


def summarize(
    results: dict[str, dict[int, Run]], costs: Mapping[str, Cost]
) -> list[list[str]]:
    """The table's cells of one problem, header first, a row a method."""
    cosines, costs_of = ["cos local", "whole", "g0"], ["passes", "time", "MB"]
    table = [["method", "rho", "error %", "Δm %", "to global", *cosines, *costs_of]]
    baseline = _errors(results[SINGLE_TASK]).mean(axis=0)
    for method, runs in results.items():
        errors = _errors(runs)
        cells = [method, f"{runs[0].rho:g}", spread(errors.mean(axis=1), 1)]
        cells.append(spread(samo_jax.delta_m(errors, baseline), 1))
        if GLOBAL in results:
            difference = (errors - _errors(results[GLOBAL])).mean(axis=1)
            cells.append(spread(difference, 1))
        else:
            cells.append("-")
        looks = _looks(runs)
        means = looks[..., 1:4].mean(axis=(0, 1)) if looks.size else []
        cells += [f"{mean:.2f}" for mean in means] or ["-"] * 3
        if method in costs:
            cost = costs[method]
            cells.append(f"{cost.units}")
            if PLAIN in costs:
                ratio = cost.milliseconds / costs[PLAIN].milliseconds
                cells.append(f"{ratio:.2f}")
            else:
                cells.append("-")
            cells.append(f"{cost.temporary_bytes / 2**20:.3g}")
        else:
            cells += ["-"] * 3
        table.append(cells)
    return table


def plot(results: Results, path: Path) -> None:
    """Pictures of each problem: error against time, and the local parts' cosines."""
    figure, axes = plt.subplots(
        2,
        len(results),
        figsize=(5.2 * len(results), 8.4),
        layout="constrained",
        squeeze=False,
    )
    methods = [name for runs, _ in results.values() for name in runs]
    spectrum = plt.get_cmap("tab20")
    colors = {name: spectrum(i % 20) for i, name in enumerate(dict.fromkeys(methods))}
    for (title, (runs, costs)), (above, below) in zip(
        results.items(), axes.T, strict=True
    ):
        _plot_errors(above, runs, costs, colors)
        above.set_title(title)
        _plot_cosines(below, runs, colors)
    axes[0, 0].set_ylabel("error, % (bars: standard error)")
    axes[1, 0].set_ylabel("cosine of the local part with the task's gradient")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _plot_errors(axes, runs, costs, colors):
    plain = costs[next(iter(costs))].milliseconds
    for name, cost in costs.items():
        errors = _errors(runs[name]).mean(axis=1)
        axes.errorbar(
            cost.milliseconds / plain,
            errors.mean(),
            errors.std() / max(len(errors) - 1, 1) ** 0.5,
            fmt="s" if name in _COMPARED else "o",
            color=colors[name],
            label=name,
        )
    axes.set(xlabel=f"time of a step, relative to {next(iter(costs))}", xscale="log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.grid(alpha=0.3)


def _plot_cosines(axes, runs, colors):
    for name, of_seeds in runs.items():
        looks = _looks(of_seeds)
        if looks.size:
            steps, local = looks[..., 0].mean(axis=0), looks[..., 1].mean(axis=0)
            axes.plot(steps, local, color=colors[name])
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set(xlabel="step")
    axes.grid(alpha=0.3)
