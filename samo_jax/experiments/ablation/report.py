"""The page and the pictures of the ablation."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from samo_jax.experiments.ablation.methods import GLOBAL, METHODS, PLAIN, SAMO, Setting
from samo_jax.experiments.ablation.minima import BATCHES, EXTENT
from samo_jax.experiments.ablation.results import Results
from samo_jax.experiments.analysis.plots import plot_slices, plot_spectra
from samo_jax.experiments.analysis.sharpness import eigenvalue_ratio
from samo_jax.experiments.benchmarks.scores import columns, finals
from samo_jax.experiments.tables import markdown_table, spread

Table = list[list[str]]

_HEAD = """\
# SAMO's parameters, and how sharp its minima are

Tables and pictures by `python -m samo_jax.experiments ablation`. FairGrad (alpha 2),
the shared gradient clipped to norm 1, Adam; for one seed, all methods have the same
data, initialisation and batches. Each task's gradient is taken

- **plain**: at the parameters themselves;
- **global**: up the mean loss, as in SAM;
- **L-SAM**: up its own loss, along its exact gradient;
- **SAMO**: up a mixture of the mean loss's gradient (its share is alpha) and a probe of
  its own loss (of step mu);
- **random-sign control**: as in SAMO, with probes of random sign, which know nothing of
  the task's loss."""

_LEGEND = """\
## How to read this

First table: on test examples, mean ± standard deviation over seeds ({seeds}). rho: the
best of the sweep below. Δm: against plain, lower is better, without metrics that are 0
there or not finite; to global: Δm minus global SAM's, seed by seed. time: of a step,
relative to plain.

Second table: training loss of the last epoch; the other columns are of the final,
shared parameters ({minima} of the seeds). λ1 and λ5: largest and fifth largest
eigenvalue of the Hessian of the mean loss on the first {batches} training batches.
cosine: between the gradients of two tasks, over all training batches; conflicts: the
share that is negative. Pictures, of seed 0: the eigenvalues, and the same loss along
two random, filter-normalised directions.

Sweeps: Δm on validation examples, against plain; alpha 0.5 and mu 0.01 while rho
varies, SAMO's best rho while they do. alpha 1 is global SAM."""

_COLORS = {method: f"C{index}" for index, method in enumerate(METHODS)}


def comparison(results: Results) -> Table:
    """Results of each method on test examples, header first, a row a method."""
    chosen = columns(results.tasks)
    names = [f"{c.task} {c.metric}".replace("_", " ") for c in chosen]
    table = [["method", "rho", *names, "Δm %", "to global", "time"]]
    to_global = results.final_delta_m(GLOBAL)

    def seconds(method):
        runs = results.finals[method].values()
        return np.median([run.seconds_per_step for run in runs])

    for method, runs in results.finals.items():
        metrics = finals(chosen, runs)
        delta_m = results.final_delta_m(method)
        cells = [method, f"{results.rhos[method]:g}", *map(spread, metrics.T)]
        cells += [spread(delta_m, 1), spread(delta_m - to_global, 1)]
        table.append([*cells, f"{seconds(method) / seconds(PLAIN):.2f}"])
    return table


def sharpness(results: Results) -> Table:
    """Sharpness of each method's minima, header first, a row a method."""
    table = [["method", "training loss", "λ1", "λ1 / λ5", "cosine", "conflicts %"]]
    for method, minima in results.minima.items():
        runs = results.finals[method].values()
        quantities = (
            [run.loss_curve[-1] for run in runs],
            [m.eigenvalues[0] for m in minima.values()],
            [eigenvalue_ratio(np.array(m.eigenvalues)) for m in minima.values()],
            [m.cosine for m in minima.values()],
            [100 * m.conflicts for m in minima.values()],
        )
        table.append([method, *map(spread, quantities)])
    return table


def sweeps(results: Results) -> dict[str, dict[str, dict[float, np.ndarray]]]:
    """Delta m by parameter, method and value; that of alpha and mu of SAMO alone."""
    best = Setting(SAMO, results.rhos[SAMO])
    rho = {m: results.sweep(Setting(m), "rho") for m in results.rhos if m != PLAIN}
    return {
        "rho": rho,
        "alpha": {SAMO: results.sweep(best, "alpha")},
        "mu": {SAMO: results.sweep(best, "mu")},
    }


def sweep_table(parameter: str, by_method: dict[str, dict[float, np.ndarray]]) -> Table:
    """Delta m on validation examples, header first, a row a method."""
    header = [f"{value:g}" for value in next(iter(by_method.values()))]
    return [
        [parameter, *header],
        *(
            [method, *(spread(delta_m, 1) for delta_m in by_value.values())]
            for method, by_value in by_method.items()
        ),
    ]


def plot_sweeps(results: Results, file: Path) -> None:
    """Delta m against rho, alpha and mu, with its spread over seeds."""
    figure, axes = plt.subplots(
        1, 3, figsize=(13, 4), sharey=True, layout="constrained"
    )
    for ax, (parameter, by_method) in zip(axes, sweeps(results).items(), strict=True):
        for method, by_value in by_method.items():
            ax.errorbar(
                list(by_value),
                [delta_m.mean() for delta_m in by_value.values()],
                [delta_m.std(ddof=len(delta_m) > 1) for delta_m in by_value.values()],
                fmt="o-",
                ms=4,
                capsize=2,
                color=_COLORS[method],
                label=method,
            )
        ax.axhline(0, color=_COLORS[PLAIN], lw=1, label=PLAIN)
        ax.set(xlabel=parameter, xscale="linear" if parameter == "alpha" else "log")
        swept = list(next(iter(by_method.values())))
        ax.set_xticks(swept, [f"{value:g}" for value in swept])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("Δm against plain, %, lower is better")
    axes[0].legend()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def plot(results: Results, folder: Path, name: str) -> None:
    """The sweeps, and of seed 0 the Hessian's eigenvalues and slices of the loss."""
    minima = {method: of[0] for method, of in results.minima.items()}
    plot_sweeps(results, folder / f"ablation_{name}_sweeps.png")
    plot_spectra(
        {method: np.array(m.eigenvalues) for method, m in minima.items()},
        folder / f"ablation_{name}_spectra.png",
    )
    plot_slices(
        {method: np.array(m.heights) for method, m in minima.items()},
        EXTENT,
        folder / f"ablation_{name}_slices.png",
    )


def section(results: Results, name: str) -> str:
    """The page's part of one problem."""
    epochs = len(results.finals[PLAIN][0].loss_curve)
    seeds = len(results.sweeps[Setting(PLAIN)])
    return _join(
        f"## {name}, {len(results.tasks)} tasks, {epochs} epochs",
        markdown_table(comparison(results)),
        markdown_table(sharpness(results)),
        f"![Hessian eigenvalues](ablation_{name}_spectra.png)",
        f"![Slices of the loss](ablation_{name}_slices.png)",
        f"Sweeps, {seeds} seed{'s' if seeds > 1 else ''}:",
        f"![Δm against rho, alpha and mu](ablation_{name}_sweeps.png)",
        *(markdown_table(sweep_table(*item)) for item in sweeps(results).items()),
    )


def page(sections: list[str], seeds: int, minima: int) -> str:
    """The whole page.

    Args:
        sections: sections of the problems.
        seeds: number of seeds.
        minima: number of seeds whose minima have been looked at.
    """
    numbers = {"seeds": seeds, "minima": min(seeds, minima), "batches": BATCHES}
    return _join(_HEAD, *sections, _LEGEND.format(**numbers))


def _join(*parts: str) -> str:
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"
