"""Pictures of how sharp minima are."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from samo_jax.experiments.reports.sharpness import eigenvalue_ratio


def plot_slices(slices: Mapping[str, np.ndarray], extent: float, file: Path) -> None:
    """Slices of the loss side by side, with the same levels for all.

    Args:
        slices: results of `loss_slice`, by method.
        extent: theirs.
        file: a PNG.
    """
    figure, axes = plt.subplots(
        1,
        len(slices),
        figsize=(3.2 * len(slices) + 1, 3.4),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    values = np.ma.masked_invalid(np.stack(list(slices.values())))
    low, high = (0.0, 1.0) if values.mask.all() else (values.min(), values.max())
    levels = np.linspace(low, high if high > low else low + 1, 21)
    for ax, (method, height) in zip(axes[0], slices.items(), strict=True):
        steps = np.linspace(-extent, extent, len(height))
        height = np.ma.masked_invalid(height)
        ax.contourf(steps, steps, height, levels, cmap="viridis")
        ax.contour(steps, steps, height, levels, colors="white", linewidths=0.4)
        ax.plot(0, 0, "*", color="white", markeredgecolor="black", ms=11)
        ax.set(title=method, xlabel="first direction")
    axes[0, 0].set_ylabel("second direction")
    figure.colorbar(axes[0, 0].collections[0], ax=axes[0], label="loss", format="%.3g")
    figure.savefig(file, dpi=150)
    plt.close(figure)


def plot_spectra(spectra: Mapping[str, np.ndarray], file: Path) -> None:
    """The largest Hessian eigenvalues of each method, and how the first stands out.

    Args:
        spectra: results of `hessian_eigenvalues`, at least five each, by method.
        file: a PNG.
    """
    figure, (values, ratios) = plt.subplots(
        1, 2, figsize=(9, max(3.2, 0.3 * len(spectra))), layout="constrained"
    )
    for position, (method, eigenvalues) in enumerate(spectra.items()):
        color, index = f"C{position}", np.arange(len(eigenvalues)) + 1
        values.plot(index, eigenvalues, "o-", color=color, ms=4, label=method)
        ratios.barh(position, eigenvalue_ratio(eigenvalues), 0.6, color=color)
    values.set(xlabel="index", ylabel="Hessian eigenvalue", ylim=(0, None))
    values.xaxis.get_major_locator().set_params(integer=True)
    values.grid(alpha=0.3)
    values.legend()
    ratios.set_yticks(range(len(spectra)), list(spectra))
    ratios.invert_yaxis()
    ratios.set_xlabel("$\\lambda_1 / \\lambda_5$")
    figure.savefig(file, dpi=150)
    plt.close(figure)
