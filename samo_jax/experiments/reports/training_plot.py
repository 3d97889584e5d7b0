"""The picture of the tasks' agreement and weights through training."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from samo_jax.experiments.reports.axes import mark_epochs
from samo_jax.experiments.training.runs import Results, Run

_MOST_IN_A_ROW = 5
_MOST_LINES = 10


class Curves(NamedTuple):
    """Agreement curves of one method's networks, means over seeds.

    Attributes:
        epochs: epochs of the evaluations, shape (L,).
        cosine: cosine between the gradients of two tasks, shape (L,).
        conflicts: share of pairs, shape (L,).
        weights: weights by task, shape (L,), over the sum of their magnitudes; of a
            method that has none, nothing.
    """

    epochs: np.ndarray
    cosine: np.ndarray
    conflicts: np.ndarray
    weights: dict[str, np.ndarray]


@np.errstate(invalid="ignore", over="ignore")  # of runs that diverged
def curves(runs: Sequence[Run]) -> Curves:
    """The curves of a method's runs."""
    found = [[of for _, of in run.agreement_curve] for run in runs]
    cosine, conflicts = (
        np.mean([[of[name] for of in curve] for curve in found], axis=0)
        for name in ("cosine", "conflicts")
    )
    by_task = [of["weights"] for curve in found for of in curve]
    tasks = list(by_task[0] or ()) if all(by_task) else []
    weights = np.array(
        [[[(of["weights"] or {})[t] for t in tasks] for of in curve] for curve in found]
    )
    total = np.abs(weights).sum(axis=-1, keepdims=True)
    shares = (weights / np.where(total == 0, 1, total)).mean(axis=0).T
    epochs = np.array([epoch for epoch, _ in runs[0].agreement_curve])
    return Curves(epochs, cosine, conflicts, dict(zip(tasks, shares, strict=True)))


def plot_training(results: Results, path: Path) -> bool:
    """Draw two panels for each method that was diagnosed; False where none was."""
    drawn = {
        method: curves(list(runs.values()))
        for method, runs in results.items()
        if all(run.agreement_curve for run in runs.values())
    }
    if not drawn:
        return False
    num_tasks = max(len(of.weights) for of in drawn.values())
    colored = num_tasks > _MOST_LINES
    width = min(len(drawn), _MOST_IN_A_ROW)
    rows = -(-len(drawn) // width)
    heights = [1.8, 0.09 * num_tasks if colored else 1.8]
    figure, axes = plt.subplots(
        2 * rows,
        width,
        figsize=(1.8 + 2.3 * width, 0.8 + rows * sum(heights)),
        height_ratios=heights * rows,
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    uppers, lowers = axes[::2].ravel(), axes[1::2].ravel()
    for panel in (*uppers[len(drawn) :], *lowers[len(drawn) :]):
        panel.set_axis_off()
    shares = np.array([s for of in drawn.values() for s in of.weights.values()])
    finite = shares[np.isfinite(shares)]
    norm = Normalize(*((finite.min(), finite.max()) if finite.size else (0, 1)))
    for (method, of), upper, lower in zip(drawn.items(), uppers, lowers, strict=False):
        upper.set_title(fill(_literal(method), 26), fontsize=9)
        _plot_agreement(upper, of)
        if not of.weights:
            lower.set_axis_off()
            lower.text(0.5, 0.5, "no weights", transform=lower.transAxes, ha="center")
        elif colored:
            _paint_weights(lower, of, norm)
        else:
            _plot_weights(lower, of)
    for upper, lower in axes.reshape(rows, 2, width)[:, :, 0]:
        upper.set_ylabel("agreement")
        lower.set_ylabel("weight, relative")
        if colored:
            lower.tick_params(axis="y", labelsize=5)
    for lower in lowers:
        lower.tick_params(labelbottom=True)
        mark_epochs(lower, 5)
    if colored:
        figure.colorbar(ScalarMappable(norm), ax=list(lowers))
    labels = {
        label: handle
        for panel in axes.flat
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        labels.values(), labels.keys(), loc="outside lower center", ncols=2 * width
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _plot_agreement(axes: Axes, of: Curves) -> None:
    axes.axhline(0, color="grey", lw=0.8)
    axes.plot(of.epochs, of.cosine, ".-k", label="mean cosine")
    axes.plot(of.epochs, of.conflicts, ".--k", label="share of conflicts")
    axes.grid(alpha=0.3)


def _plot_weights(axes: Axes, of: Curves) -> None:
    for index, (task, share) in enumerate(of.weights.items()):
        axes.plot(of.epochs, share, ".-", color=f"C{index}", label=_literal(task))
    axes.grid(alpha=0.3)


def _paint_weights(axes: Axes, of: Curves, norm: Normalize) -> None:
    tasks = list(of.weights)
    axes.pcolormesh(
        [0, *of.epochs],  # each from the evaluation before
        np.arange(len(tasks) + 1),
        np.array(list(of.weights.values())),
        norm=norm,
    )
    axes.set_yticks(np.arange(len(tasks)) + 0.5, list(map(_literal, tasks)))


def _literal(name: str) -> str:
    """A name that stays as it is in a picture: no mathematical formula."""
    return name.replace("$", r"\$")
