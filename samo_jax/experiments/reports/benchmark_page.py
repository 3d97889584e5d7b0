"""The page of a benchmark's runs: table, pictures, and how to repeat them."""

import json
import shlex
from itertools import chain
from typing import Any

import numpy as np

from samo_jax.experiments.problems.tasks import Task
from samo_jax.experiments.reports.machine import machine
from samo_jax.experiments.reports.pages import built_block, fenced, write_page
from samo_jax.experiments.reports.scores import (
    PUBLISHED,
    delta_m,
    finals,
    grouped,
    is_published,
)
from samo_jax.experiments.reports.summary_plot import plot
from samo_jax.experiments.reports.tables import literal, markdown_table, spread
from samo_jax.experiments.reports.training_plot import plot_training
from samo_jax.experiments.training.columns import columns
from samo_jax.experiments.training.configuration import arguments
from samo_jax.experiments.training.methods import MEAN
from samo_jax.experiments.training.records import Records
from samo_jax.experiments.training.runs import Results, Run


def _seconds(runs: dict[int, Run]) -> float:
    return float(np.median([run.seconds_per_step for run in runs.values()]))


def summarize(results: Results, tasks: dict[str, Task]) -> list[list[str]]:
    """Cells of the table, header first, a row a method.

    Published single-task results come first where they are known. Time is "-" without
    the run it is relative to.
    """
    chosen = columns(tasks)
    groups = grouped(chosen)
    table = [["method", *groups, "Δm [%]", "time"]]
    if is_published(chosen):
        values = np.array([[column.single_task for column in chosen]])
        cells = [spread(values[:, index].mean(axis=1)) for index in groups.values()]
        table.append([PUBLISHED, *cells, "0.0", "-"])
    deltas, plain = delta_m(chosen, results), results.get(MEAN)
    for method, runs in results.items():
        final = finals(chosen, runs)
        cells = [spread(final[:, index].mean(axis=1)) for index in groups.values()]
        time = f"{_seconds(runs) / _seconds(plain):.2f}" if plain else "-"
        table.append([method, *cells, spread(deltas[method], 1), time])
    return table


def command(config: dict[str, Any]) -> str:
    """The command that repeats a run of these settings."""
    config = config.copy()
    words = ["python", "-m", "samo_jax.experiments", config.pop("benchmark")]
    given = [arguments(key, of) for key, of in config.items() if of is not None]
    return shlex.join([*words, *chain.from_iterable(given)])


def write_report(
    records: Records, tasks: dict[str, Task], caption: str, summary: str
) -> None:
    """Write `report.md` and `report.html`, and their pictures.

    Args:
        records: records of the finished runs.
        tasks: tasks of the benchmark.
        caption: caption of the table.
        summary: description of the benchmark.
    """
    folder, results, config = records.folder, records.results, records.config
    plot(results, tasks, folder / "summary.png")
    parts = [
        summary,
        markdown_table(summarize(results, tasks)),
        literal(caption),
        "![Training loss, and final Δm](summary.png)",
    ]
    if plot_training(results, folder / "training.png"):
        parts += [
            "Through training, on a fixed batch of training examples and the gradients "
            "of the shared parameters (means over seeds):",
            "![Agreement of the tasks' gradients, and their weights](training.png)",
        ]
    parts += [
        built_block(records.built),
        "## Repeat",
        fenced(command(config), "sh"),
        f"Settings (`config.json`):\n\n{fenced(json.dumps(config, indent=1), 'json')}",
        f"On {machine('samo_jax', 'jax', 'jaxlib', 'optax', 'flax', 'numpy')}",
    ]
    pictures = ("summary.png", "training.png")
    write_page(folder, config["benchmark"], "\n\n".join(parts) + "\n", pictures)
