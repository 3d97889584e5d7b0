"""The picture of the toy study."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from samo_jax.experiments.studies.toy.landscapes import (
    Front,
    Landscape,
    grid,
    stacked_losses,
)
from samo_jax.experiments.training.methods import PLAIN, method_of

# Okabe and Ito's, to be told apart by everyone.
COLORS = {
    PLAIN: "#d55e00",
    "global_sam": "#0072b2",
    "local_sam": "#56b4e9",
    "samo": "#009e73",
    "memory_sam": "#e69f00",
    "f_mtl": "#cc79a7",
}
_OTHER_COLORS = ("#f0e442", "#000000", "#999999")
_DRAWN = 8  # of the trajectories
_FRONT = {"marker": ".", "ls": "", "color": "black", "ms": 1.5, "zorder": 3}
_START = {"marker": "o", "ls": "", "mfc": "white", "mec": "black", "ms": 4, "zorder": 4}
_END = {"marker": "o", "ls": "", "mec": "black", "mew": 0.5, "ms": 5, "zorder": 4}


def plot(
    landscape: Landscape,
    front: Front,
    paths: Mapping[str, np.ndarray],
    ends: Mapping[str, np.ndarray],
    file: Path,
) -> None:
    """Trajectories over the mean loss, and in the losses.

    A row a combiner, a column a perturbation, and one for the losses.

    Args:
        landscape: landscape of all pictures.
        front: Pareto front of the landscape.
        paths: paths by the method's text, shape (N, steps, 2).
        ends: likewise, shape (N, 2).
        file: a PNG.
    """
    parts = {text: method_of(text) for text in paths}
    combiners = list(dict.fromkeys(str(of.combiner) for of in parts.values()))
    perturbed = list(dict.fromkeys(of.sharpness for of in parts.values()))
    others = (of for of in perturbed if of not in COLORS)
    colors = COLORS | dict(zip(others, cycle(_OTHER_COLORS), strict=False))
    rows, columns = len(combiners), len(perturbed) + 1
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.9 * columns, 2.7 * rows + 0.6),
        squeeze=False,
        layout="constrained",
    )
    x, y, mean = _mean_loss(landscape)
    # As much area between any two levels.
    levels = np.unique(np.quantile(mean, np.linspace(0, 1, 16)))
    greys = plt.get_cmap("Greys")(np.linspace(0, 0.55, len(levels) - 1))
    for text, path in paths.items():
        combiner, perturbation = str(parts[text].combiner), parts[text].sharpness
        row, column = combiners.index(combiner), perturbed.index(perturbation)
        end, color = ends[text], colors[perturbation]
        drawn = np.linspace(0, len(path) - 1, min(_DRAWN, len(path))).astype(int)
        ax, in_losses = axes[row, column], axes[row, -1]
        ax.contourf(x, y, mean, levels, colors=greys)
        _draw(ax, path[drawn], end, front.params, color, alpha=0.6)
        ax.set_xlim(landscape.low[0], landscape.high[0])
        ax.set_ylim(landscape.low[1], landscape.high[1])
        ax.label_outer()
        path, end = (stacked_losses(landscape, params) for params in (path[drawn], end))
        _draw(in_losses, path, end, front.losses, color, alpha=0.3)
    for panel in axes[:, :-1].flat:
        if not panel.has_data():  # of a pair that is not among the methods
            panel.spines[:].set_visible(False)
            panel.set(xticks=[], yticks=[])
    for panel, name in zip(axes[0], perturbed, strict=False):
        panel.set_title(fill(name, 24), color=colors[name], weight="bold")
    low, span = front.losses.min(axis=0), np.ptp(front.losses, axis=0)
    for row, combiner in enumerate(combiners):
        axes[row, 0].set_ylabel(fill(combiner, 24), weight="bold")
        axes[row, -1].set_ylabel("loss b")
        axes[row, -1].set_xlim(low[0] - 0.1 * span[0], low[0] + 1.5 * span[0])
        axes[row, -1].set_ylim(low[1] - 0.1 * span[1], low[1] + 1.5 * span[1])
        axes[row, -1].grid(alpha=0.3)
    axes[0, -1].set_title("all, in losses", weight="bold")
    axes[-1, -1].set_xlabel("loss a")
    figure.legend(
        handles=[
            Line2D([], [], label="start", **_START),
            Line2D([], [], label="end", mfc="grey", **_END),
            Line2D([], [], label="Pareto set and front", lw=2, color="black"),
        ],
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _draw(ax: Axes, paths, ends, front, color, alpha):
    ax.plot(*paths.T, color=color, lw=0.7, alpha=alpha)
    ax.plot(*front.T, **_FRONT)
    ax.plot(*paths[:, 0].T, **_START)
    ax.plot(*ends.T, mfc=color, **_END)


def _mean_loss(landscape: Landscape):
    points = grid(landscape, 200)
    return *points.transpose(2, 0, 1), stacked_losses(landscape, points).mean(axis=-1)
