"""The page and the pictures of the ablation."""

from collections.abc import Collection, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from samo_jax.experiments.reports.pages import built_block, write_page
from samo_jax.experiments.reports.scores import finals
from samo_jax.experiments.reports.sharpness import eigenvalue_ratio
from samo_jax.experiments.reports.sharpness_plots import plot_slices, plot_spectra
from samo_jax.experiments.reports.tables import counted, markdown_table, spread
from samo_jax.experiments.studies.ablation.minima import BATCHES, EXTENT
from samo_jax.experiments.studies.ablation.results import Results
from samo_jax.experiments.studies.ablation.settings import (
    GLOBAL,
    PLAIN,
    SAMO,
    Setting,
    label_of,
)
from samo_jax.experiments.training.columns import columns

Table = list[list[str]]

_TITLE = "SAMO's parameters, and how sharp its minima are"
_HEAD = """\
Tables and pictures by `python -m samo_jax.experiments ablation`. The shared gradient
is clipped to norm 1; the optimiser is Adam. For one seed, all methods have the same
data, initialisation and batches. Methods without a combiner in their name use FairGrad
(alpha 2). Each task's gradient is taken

- **plain**: at the parameters themselves;
- **global**: up the mean loss, as in SAM;
- **L-SAM**: up its own loss, along its exact gradient;
- **SAMO**: up a mixture of the mean loss's gradient (its share is alpha) and a probe of
  its own loss (of step mu);
- **random-sign control**: as in SAMO, with probes of random sign, which know nothing of
  the task's loss."""

_LEGEND = """\
## How to read this

First table: on test examples, {seeds}. rho: the best of the sweep below. Δm: against
plain, lower is better, without metrics that are 0 there or not finite; to global: Δm
minus global SAM's, seed by seed. time: of a step, relative to plain.

Second table: training loss of the last epoch; the other columns are of the final,
shared parameters ({minima}). λ1 and λ5: largest and fifth largest
eigenvalue of the Hessian of the mean loss on the first {batches} training batches.
cosine: between the gradients of two tasks, over all training batches; conflicts: the
share that is negative. Pictures, of seed 0: the eigenvalues, and the same loss along
two random, filter-normalised directions.

Sweeps: Δm on validation examples, against plain; alpha 0.5 and mu 0.01 while rho
varies, SAMO's best rho while they do. alpha 1 is global SAM."""


def comparison(results: Results) -> Table:
    """Table of results on test examples, header first, a row a method."""
    chosen = columns(results.tasks)
    titles = [column.title() for column in chosen]
    table = [["method", "rho", *titles, "Δm [%]", "to global", "time"]]
    to_global = results.final_delta_m(GLOBAL)

    def seconds(method):
        runs = results.finals[method].values()
        return np.median([run.seconds_per_step for run in runs])

    for method, runs in results.finals.items():
        metrics = finals(chosen, runs)
        delta_m = results.final_delta_m(method)
        rho = results.rhos[method]
        cells = [label_of(method), f"{rho:g}" if rho else "-", *map(spread, metrics.T)]
        cells += [spread(delta_m, 1), spread(delta_m - to_global, 1)]
        table.append([*cells, f"{seconds(method) / seconds(PLAIN):.2f}"])
    return table


def sharpness(results: Results) -> Table:
    """Table of the minima's sharpness, header first, a row a method."""
    table = [["method", "training loss", "λ1", "λ1 / λ5", "cosine", "conflicts [%]"]]
    for method, minima in results.minima.items():
        runs = results.finals[method].values()
        quantities = (
            [run.loss_curve[-1] for run in runs],
            [m.eigenvalues[0] for m in minima.values()],
            [eigenvalue_ratio(np.array(m.eigenvalues)) for m in minima.values()],
            [m.cosine for m in minima.values()],
            [100 * m.conflicts for m in minima.values()],
        )
        table.append([label_of(method), *map(spread, quantities)])
    return table


def sweeps(results: Results) -> dict[str, dict[str, dict[float, np.ndarray]]]:
    """Delta m by parameter, method and value; that of alpha and mu of SAMO alone."""
    tuned = [method for method, rho in results.rhos.items() if rho]
    found = {"rho": {m: results.sweep(Setting(m), "rho") for m in tuned}}
    if SAMO in results.rhos:
        best = Setting(SAMO, results.rhos[SAMO])
        found |= {name: {SAMO: results.sweep(best, name)} for name in ("alpha", "mu")}
    return found


def sweep_table(parameter: str, by_method: dict[str, dict[float, np.ndarray]]) -> Table:
    """Delta m on validation examples, header first, a row a method."""
    header = [f"{value:g}" for value in next(iter(by_method.values()))]
    return [
        [parameter, *header],
        *(
            [label_of(method), *(spread(delta_m, 1) for delta_m in by_value.values())]
            for method, by_value in by_method.items()
        ),
    ]


def plot_sweeps(results: Results, file: Path) -> None:
    """Delta m against rho, alpha and mu, with its spread over seeds."""
    swept_by = sweeps(results)
    colors = {method: f"C{index}" for index, method in enumerate(results.rhos)}
    figure, (axes,) = plt.subplots(
        1,
        len(swept_by),
        figsize=(1 + 4 * len(swept_by), 4),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for ax, (parameter, by_method) in zip(axes, swept_by.items(), strict=True):
        for method, by_value in by_method.items():
            ax.errorbar(
                list(by_value),
                [delta_m.mean() for delta_m in by_value.values()],
                [delta_m.std(ddof=len(delta_m) > 1) for delta_m in by_value.values()],
                fmt="o-",
                ms=4,
                capsize=2,
                color=colors[method],
                label=label_of(method),
            )
        ax.axhline(0, color=colors[PLAIN], lw=1, label=label_of(PLAIN))
        ax.set(xlabel=parameter, xscale="linear" if parameter == "alpha" else "log")
        swept = list(next(iter(by_method.values())))
        ax.set_xticks(swept, [f"{value:g}" for value in swept])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("Δm against plain [%], lower is better")
    axes[0].legend()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def plot(results: Results, folder: Path, name: str) -> list[str]:
    """Draw sweeps, and of seed 0 eigenvalues and slices; return the files' names."""
    minima = {label_of(method): of[0] for method, of in results.minima.items()}
    files = [f"ablation_{name}_{what}.png" for what in ("sweeps", "spectra", "slices")]
    sweeps, spectra, slices = (folder / file for file in files)
    plot_sweeps(results, sweeps)
    plot_spectra({m: np.array(of.eigenvalues) for m, of in minima.items()}, spectra)
    plot_slices({m: np.array(of.heights) for m, of in minima.items()}, EXTENT, slices)
    return files


def section(results: Results, name: str, built: Mapping[str, str]) -> str:
    """The page's part of one problem.

    Args:
        results: results of the problem.
        name: name of the problem.
        built: the calls of the methods.
    """
    epochs = len(results.finals[PLAIN][0].loss_curve)
    seeds = len(results.sweeps[Setting(PLAIN)])
    return _join(
        f"## {name}, {len(results.tasks)} tasks, {counted(epochs, 'epoch')}",
        markdown_table(comparison(results)),
        markdown_table(sharpness(results)),
        f"![Hessian eigenvalues](ablation_{name}_spectra.png)",
        f"![Slices of the loss](ablation_{name}_slices.png)",
        f"Sweeps, {counted(seeds, 'seed')}:",
        f"![Δm against rho, alpha and mu](ablation_{name}_sweeps.png)",
        *(markdown_table(sweep_table(*item)) for item in sweeps(results).items()),
        built_block(built),
    )


def write_report(
    folder: Path,
    sections: list[str],
    seeds: int,
    minima: int,
    pictures: Collection[str],
) -> None:
    """Write `report.md` and `report.html`.

    Args:
        folder: folder of the files.
        sections: sections of the problems.
        seeds: number of seeds.
        minima: number of seeds whose minima were looked for.
        pictures: the files that the sections show.
    """
    over = "mean ± standard deviation over " if seeds > 1 else ""
    legend = _LEGEND.format(
        seeds=over + counted(seeds, "seed"),
        minima=counted(min(seeds, minima), "seed"),
        batches=BATCHES,
    )
    write_page(folder, _TITLE, _join(_HEAD, *sections, legend), pictures)


def _join(*parts: str) -> str:
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"
