"""The picture of what a benchmark's runs came to."""

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from samo_jax.experiments.problems.tasks import Task
from samo_jax.experiments.reports.axes import mark_epochs
from samo_jax.experiments.reports.scores import baseline, delta_m
from samo_jax.experiments.training.columns import columns
from samo_jax.experiments.training.methods import PLAIN, method_of
from samo_jax.experiments.training.runs import Results

_LINES = ("--", ":", "-.", (0, (1, 4)), (0, (5, 1, 1, 1, 1, 1)))


@np.errstate(invalid="ignore", over="ignore")  # of runs that diverged
def plot(results: Results, tasks: dict[str, Task], path: Path) -> None:
    """Training loss, and final Delta m with its spread over seeds.

    A method's colour is its combiner's, its line its perturbation's; the right-hand
    labels tell which.
    """
    figure, (curves, final) = plt.subplots(
        1, 2, figsize=(12, max(4.6, 0.24 * len(results))), layout="constrained"
    )
    methods = {text: method_of(text) for text in results}
    combiners = {text: str(of.combiner) for text, of in methods.items()}
    colors, drawable = _colors(combiners.values()), False
    perturbed = dict.fromkeys(of.sharpness for of in methods.values())
    lines = {PLAIN: "-"} | dict(
        zip((of for of in perturbed if of != PLAIN), cycle(_LINES), strict=False)
    )
    chosen = columns(tasks)
    deltas = delta_m(chosen, results)
    for position, (method, runs) in enumerate(results.items()):
        color, line = colors[combiners[method]], lines[methods[method].sharpness]
        losses = np.mean([run.loss_curve for run in runs.values()], axis=0)
        drawable = drawable or np.any((losses > 0) & np.isfinite(losses))
        epochs = np.arange(1, len(losses) + 1)
        marker = "" if len(losses) > 1 else "o"  # of one epoch there is no line
        curves.plot(epochs, losses, ls=line, marker=marker, color=color)
        delta = deltas[method]
        final.scatter(delta, [position] * len(delta), color=color, alpha=0.4)
        final.plot(delta.mean(), position, "|", color=color, ms=12, mew=3)
    scale = "log" if drawable else "linear"  # of nothing, where all diverged
    curves.set(ylabel="mean training loss", yscale=scale)
    mark_epochs(curves)
    for sharpness in perturbed:
        curves.plot([], [], ls=lines[sharpness], color="grey", label=sharpness)
    curves.legend()
    final.axvline(0, color="grey", lw=0.8)
    final.set(
        xlabel=f"Δm against {baseline(chosen, results)} [%], lower is better\n"
        "(dots: seeds, bars: means)"
    )
    final.set_yticks(range(len(results)), list(results))
    for label, method in zip(final.get_yticklabels(), results, strict=True):
        label.set_color(colors[combiners[method]])
    final.invert_yaxis()
    final.margins(y=0.5 / len(results))
    for axes in (curves, final):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _colors(combiners: Iterable[str]) -> dict[str, Any]:
    unique = list(dict.fromkeys(combiners))
    if len(unique) <= 10:
        return {combiner: f"C{index}" for index, combiner in enumerate(unique)}
    spectrum = plt.get_cmap("turbo")(np.linspace(0, 1, len(unique)))
    return dict(zip(unique, spectrum, strict=True))
