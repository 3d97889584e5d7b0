"""The picture of what a benchmark's runs came to."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from samo_jax.experiments.benchmarks.methods import SHARPNESS, split
from samo_jax.experiments.benchmarks.scores import (
    Results,
    baseline,
    columns,
    delta_m,
)
from samo_jax.experiments.benchmarks.tasks import Task

_STYLES = dict(zip(SHARPNESS, ("-", "--", ":"), strict=True))


@np.errstate(invalid="ignore", over="ignore")  # of runs that diverged
def plot(results: Results, tasks: dict[str, Task], path: Path) -> None:
    """Training loss, and final Delta m with its spread over seeds.

    A method's colour is its combiner's; the right-hand labels tell which.
    """
    figure, (curves, final) = plt.subplots(
        1, 2, figsize=(12, max(4.6, 0.24 * len(results))), layout="constrained"
    )
    colors = _combiner_colors(results)
    used, drawable = set(), False
    chosen = columns(tasks)
    deltas = delta_m(chosen, results)
    for position, (method, runs) in enumerate(results.items()):
        combiner, sharpness = split(method)
        used.add(sharpness)
        color = colors[combiner]
        losses = np.mean([run.loss_curve for run in runs.values()], axis=0)
        drawable = drawable or np.any((losses > 0) & np.isfinite(losses))
        epochs = np.arange(1, len(losses) + 1)
        curves.plot(epochs, losses, _STYLES[sharpness], color=color)
        delta = deltas[method]
        final.scatter(delta, [position] * len(delta), color=color, alpha=0.4)
        final.plot(delta.mean(), position, "|", color=color, ms=12, mew=3)
    scale = "log" if drawable else "linear"  # of nothing, where all diverged
    curves.set(xlabel="epoch", ylabel="mean training loss", yscale=scale)
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    for sharpness in SHARPNESS:
        if sharpness in used:
            curves.plot([], [], _STYLES[sharpness], color="grey", label=sharpness)
    curves.legend()
    final.axvline(0, color="grey", lw=0.8)
    final.set(
        xlabel=f"Δm against {baseline(chosen, results)}, %, lower is better "
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
