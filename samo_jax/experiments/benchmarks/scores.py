"""What finished runs come to: metrics in columns, and Delta m."""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

import samo_jax
from samo_jax.experiments.benchmarks.methods import SINGLE_TASK
from samo_jax.experiments.benchmarks.tasks import Task
from samo_jax.experiments.benchmarks.training import Run

Results: TypeAlias = dict[str, dict[int, Run]]  # by method, by seed
Directions: TypeAlias = dict[str, dict[str, bool]]  # is higher better: by task, metric

_MOST_COLUMNS = 12


class Column(NamedTuple):
    """One metric of one task."""

    task: str
    metric: str
    higher_is_better: bool


def directions(tasks: Mapping[str, Task]) -> Directions:
    """Of all tasks and metrics."""
    return {name: task.higher_is_better for name, task in tasks.items()}


def columns(directions: Directions) -> list[Column]:
    """All metrics of all tasks."""
    return [
        Column(task, metric, higher_is_better)
        for task, metrics in directions.items()
        for metric, higher_is_better in metrics.items()
    ]


def grouped(columns: list[Column]) -> dict[str, list[int]]:
    """Columns of a table by name: of many metrics, those of one name make one."""
    groups = {f"{c.task} {c.metric}": [k] for k, c in enumerate(columns)}
    if len(columns) > _MOST_COLUMNS:
        groups = {}
        for k, column in enumerate(columns):
            groups.setdefault(f"mean {column.metric}", []).append(k)
    return {name.replace("_", " "): index for name, index in groups.items()}


def finals(columns: list[Column], runs: Mapping[int, Run]) -> np.ndarray:
    """The metrics after training, shape (seeds, columns)."""
    return np.array(
        [[run.metrics[c.task][c.metric] for c in columns] for run in runs.values()]
    )


def baseline(results: Results) -> str:
    """What Delta m is relative to: single-task training, else the first method."""
    return SINGLE_TASK if SINGLE_TASK in results else next(iter(results))


def delta_m(results: Results, tasks: Mapping[str, Task]) -> dict[str, np.ndarray]:
    """Delta m in percent by method, shape (seeds,)."""
    return relative(columns(directions(tasks)), results, baseline(results))


def relative(
    columns: list[Column], results: Results, baseline: str
) -> dict[str, np.ndarray]:
    """Delta m by method, shape (seeds,), against the mean of one of them."""
    reference = finals(columns, results[baseline]).mean(axis=0)
    higher_is_better = np.array([column.higher_is_better for column in columns])
    return {
        method: np.asarray(
            samo_jax.delta_m(
                finals(columns, runs), reference, higher_is_better=higher_is_better
            )
        )
        for method, runs in results.items()
    }
