"""Scores of finished runs: metrics in columns, and Delta m."""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

import samo_jax
from samo_jax.experiments.benchmarks.methods import SINGLE_TASK
from samo_jax.experiments.benchmarks.tasks import Task
from samo_jax.experiments.benchmarks.training import Run, evaluated_epochs

Results: TypeAlias = dict[str, dict[int, Run]]  # by method, by seed

PUBLISHED = "published single-task results"
_MOST_COLUMNS = 12


class Column(NamedTuple):
    """One metric of one task.

    Attributes:
        task: name of the task.
        metric: name of the metric.
        higher_is_better: whether a higher metric is better.
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


def fault(columns: list[Column], run: Run, epochs: int | None = None) -> str | None:
    """The fault in a run that a file says to have finished, or None.

    Args:
        columns: the metrics of all tasks.
        run: run whose fields have the right types.
        epochs: epochs that it should have been trained for; None: any.
    """
    names: dict[str, set[str]] = {}
    for column in columns:
        names.setdefault(column.task, set()).add(column.metric)
    found = {task: set(metrics) for task, metrics in run.metrics.items()}
    if found != names or not names:
        return "its metrics are not those of the benchmark's tasks"
    if epochs is None:
        return None
    evaluated, looked = (
        [epoch for epoch, _ in of] for of in (run.metrics_curve, run.looks)
    )
    expected = evaluated_epochs(epochs)
    if len(run.loss_curve) != epochs or evaluated != expected:
        return f"it was not trained for {epochs} epochs"
    weighted = [set(look["weights"]) for _, look in run.looks if look["weights"]]
    if looked not in ([], expected) or any(of != set(names) for of in weighted):
        return "its looks are not at these epochs, or at other tasks"
    if not 0 < run.seconds_per_step < float("inf"):
        return f"it took {run.seconds_per_step} seconds a step"
    return None


def baseline(columns: list[Column], results: Results) -> str:
    """The baseline that Delta m is relative to.

    Published single-task results, else single-task training, else the first method.
    """
    if _are_published(columns):
        return PUBLISHED
    return SINGLE_TASK if SINGLE_TASK in results else next(iter(results))


def delta_m(columns: list[Column], results: Results) -> dict[str, np.ndarray]:
    """Delta m in percent by method, shape (seeds,)."""
    reference = _reference(columns, results)
    return {m: relative(columns, runs, reference) for m, runs in results.items()}


def delta_m_caption(columns: list[Column], results: Results) -> str:
    """The baseline of Delta m, and the columns that it leaves out."""
    caption = f"Δm: against {baseline(columns, results)}, lower is better."
    out = [
        f"{column.task} {column.metric}"
        for column, value in zip(columns, _reference(columns, results), strict=True)
        if value == 0 or not np.isfinite(value)
    ]
    if not out:
        return caption
    more = f" and {len(out) - 5} more" if len(out) > 5 else ""
    return (
        f"{caption} It leaves out {', '.join(out[:5])}{more}: there the baseline is 0 "
        "or not finite."
    )


@np.errstate(invalid="ignore", over="ignore")  # of runs that diverged
def _reference(columns: list[Column], results: Results) -> np.ndarray:
    """The metrics of the baseline, shape (columns,)."""
    if _are_published(columns):
        return np.array([column.single_task for column in columns], float)
    return finals(columns, results[baseline(columns, results)]).mean(axis=0)


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
