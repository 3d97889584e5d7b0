"""What finished runs come to: metrics in columns, and Delta m."""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

import samo_jax
from samo_jax.experiments.benchmarks.methods import SINGLE_TASK
from samo_jax.experiments.benchmarks.tasks import Task
from samo_jax.experiments.benchmarks.training import Run

Results: TypeAlias = dict[str, dict[int, Run]]  # by method, by seed

PUBLISHED = "published single-task results"
_MOST_COLUMNS = 12


class Column(NamedTuple):
    """One metric of one task.

    Attributes:
        task: its name.
        metric: its name.
        higher_is_better: of the metric.
        single_task: the published result of single-task training, None if unknown.
    """

    task: str
    metric: str
    higher_is_better: bool
    single_task: float | None = None


def columns(tasks: Mapping[str, Task]) -> list[Column]:
    """All metrics of all tasks."""
    return [
        Column(name, metric, higher_is_better, task.single_task.get(metric))
        for name, task in tasks.items()
        for metric, higher_is_better in task.higher_is_better.items()
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


def baseline(columns: list[Column], results: Results) -> str:
    """What Delta m is relative to.

    Published single-task results, else single-task training, else the first method.
    """
    if _are_published(columns):
        return PUBLISHED
    return SINGLE_TASK if SINGLE_TASK in results else next(iter(results))


def delta_m(columns: list[Column], results: Results) -> dict[str, np.ndarray]:
    """Delta m in percent by method, shape (seeds,)."""
    if _are_published(columns):
        reference = np.array([column.single_task for column in columns])
    else:
        single_task = results[baseline(columns, results)]
        reference = finals(columns, single_task).mean(axis=0)
    return {m: relative(columns, runs, reference) for m, runs in results.items()}


def relative(
    columns: list[Column], runs: Mapping[int, Run], reference: np.ndarray
) -> np.ndarray:
    """Delta m in percent against metrics of shape (columns,), shape (seeds,)."""
    higher_is_better = np.array([column.higher_is_better for column in columns])
    return np.asarray(
        samo_jax.delta_m(
            finals(columns, runs), reference, higher_is_better=higher_is_better
        )
    )


def _are_published(columns: list[Column]) -> bool:
    return all(column.single_task is not None for column in columns)
