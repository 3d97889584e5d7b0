"""The tables, the picture and the page of the study of real data."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import ScalarFormatter

from samo_jax.experiments.reports.machine import machine
from samo_jax.experiments.reports.pages import write_page
from samo_jax.experiments.reports.scores import finals
from samo_jax.experiments.reports.tables import (
    half_width,
    interval,
    literal,
    markdown_table,
)
from samo_jax.experiments.studies.real.cells import (
    CONSTANT,
    GLOBAL,
    PERTURBATIONS,
    label_of,
    perturbation_label,
)
from samo_jax.experiments.studies.real.study import Study, gains
from samo_jax.experiments.training.methods import MEAN, SINGLE_TASK

PICTURE = "real.png"
_MARKERS = dict(zip(PERTURBATIONS, "osDd^<vP*", strict=True))
_TICKS = (1, 2, 3, 5, 10, 20, 30, 50, 100)
# Okabe and Ito's colours, which the colour-blind tell apart.
_COLORS = {
    "mean": "#000000",
    "fairgrad": "#D55E00",
    "upgrad": "#0072B2",
    "nash_mtl": "#009E73",
    "famo": "#CC79A7",
    "uncertainty": "#E69F00",
    CONSTANT: "#56B4E9",
}
_TEXT = """\
Gain over another method: in points of the metric, mean over tasks, paired by seed, with
its 95 % confidence interval; for QM9, whose metrics have units, in percent of the other
method's errors. More is better. Time: of a step on one core, relative to plain mean,
the fastest of the runs. MB: peak of its temporary memory. All is tuned on validation
examples with seeds of their own: the learning rate for plain mean, a radius for each
sharpness method (with the mean; of F-MTL with FairGrad), the weights of `constant`
among random draws."""


def table(study: Study) -> list[list[str]]:
    """Cells of the table of one data set, header first, a row a method."""
    chosen, found, settings = study.columns, study.outcomes(), study.settings()
    titles = {f"mean {column.quantity()}" for column in chosen}
    quality = sorted(titles) if len(titles) == 1 else []
    values = {text: finals(chosen, runs) for text, runs in found.items()}
    times = {text: _seconds(runs) for text, runs in found.items()}
    compared = "gain over mean", "gain over mean + SAM"
    memory = {text: _megabytes(runs) for text, runs in found.items()}
    rows = [["method", "rho", *quality, *compared, "time", "MB"]]
    for text, of in values.items():
        rho = settings[text].rho
        cells = [label_of(text), "-" if rho is None else f"{rho:g}"]
        cells += [interval(of.mean(axis=1))] * len(quality)
        for other in (MEAN, GLOBAL):
            gain = gains(chosen, of, values[other])
            cells.append("-" if text == other else interval(gain, 2))
        rows.append([*cells, f"{times[text] / times[MEAN]:.2f}", memory[text]])
    if {*memory.values()} == {"-"}:
        return [row[:-1] for row in rows]
    return rows


def _seconds(runs) -> float:
    return min(run.seconds_per_step for run in runs.values())


def _megabytes(runs) -> str:
    known = [run.temporary_bytes for run in runs.values() if run.temporary_bytes]
    return f"{known[0] / 1e6:.3g}" if known else "-"


def write_report(folder: Path, studies: Mapping[str, Study]) -> None:
    """Write `report.md` and `report.html`, and their picture.

    Args:
        folder: folder of the files.
        studies: finished studies, by name of the data set.
    """
    _plot(studies, folder / PICTURE)
    parts = [_TEXT, f"![Gain over plain mean against time of a step]({PICTURE})"]
    for name, study in studies.items():
        benchmark = study.benchmark
        parts += [
            f"## {name}, {len(benchmark.tasks)} tasks",
            markdown_table(table(study)),
            f"{benchmark.train.num_examples} training examples, "
            f"{study.epochs or benchmark.epochs} epochs, batches of "
            f"{benchmark.batch_size}, learning rate {study.learning_rate():g}.",
            *map(literal, benchmark.notes),
        ]
    parts.append(f"On {machine('samo_jax', 'jax', 'optax', 'flax')}")
    write_page(folder, "Real data", "\n\n".join(parts) + "\n", [PICTURE])


def _plot(studies: Mapping[str, Study], path: Path) -> None:
    """Gain over plain mean against the time of a step, a panel a data set."""
    columns = min(3, len(studies))
    figure, axes = plt.subplots(
        -(-len(studies) // columns),
        columns,
        figsize=(4.6 * columns, 3.9 * -(-len(studies) // columns)),
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat[len(studies) :]:
        axis.set_axis_off()
    for axis, (name, study) in zip(axes.flat, studies.items(), strict=False):
        _plot_one(axis, study)
        axis.set_title(f"{name}, {len(study.benchmark.tasks)} tasks")
    drawn = [text for study in studies.values() for text in _drawn(study)]
    combiners = dict.fromkeys(map(_combiner, drawn))
    labels = dict.fromkeys(
        perturbation_label(text) for text in drawn if text != CONSTANT
    )
    keys = [(name, {"marker": "o", "color": _color(name)}) for name in combiners]
    keys += [(name, {"marker": _marker(name), "color": "0.4"}) for name in labels]
    figure.legend(
        [Line2D([], [], linestyle="", **style) for _, style in keys],
        [name for name, _ in keys],
        loc="outside lower center",
        ncols=max(2, 2 * columns),
        fontsize=8,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _plot_one(axis: Axes, study: Study) -> None:
    found = study.outcomes()
    values = {text: finals(study.columns, runs) for text, runs in found.items()}
    plain = _seconds(found[MEAN])
    for text in _drawn(study):
        gain = gains(study.columns, values[text], values[MEAN])
        axis.errorbar(
            _seconds(found[text]) / plain,
            gain.mean(),
            _half(gain),
            fmt="o" if text == CONSTANT else _marker(perturbation_label(text)),
            color=_color(_combiner(text)),
            markersize=5,
            elinewidth=0.8,
        )
    axis.axhline(0, color="0.5", linewidth=0.8)
    axis.set(xscale="log", xlabel="time of a step, relative to plain mean")
    percent = all(column.unit == "%" for column in study.columns)
    axis.set_ylabel("gain over plain mean [" + ("points]" if percent else "%]"))
    least, most = axis.get_xlim()
    axis.set_xticks([tick for tick in _TICKS if least <= tick <= most])
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.minorticks_off()
    axis.tick_params(which="both", labelsize=8)
    axis.grid(alpha=0.3)


def _drawn(study: Study) -> list[str]:
    """The methods that the picture shows: not what they are compared with."""
    return [text for text in study.methods() if text not in (MEAN, SINGLE_TASK)]


def _half(values: np.ndarray) -> float:
    return float(half_width(values)) if len(values) > 1 else 0.0


def _combiner(text: str) -> str:
    return text.partition("+")[0].partition("(")[0]


def _marker(label: str) -> str:
    return _MARKERS.get(label, "X")


def _color(combiner: str) -> str:
    return _COLORS.get(combiner, "0.6")
