"""Scores of finished runs: metrics in columns, and Delta m."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

import samo_jax
from samo_jax.experiments.training.columns import Column
from samo_jax.experiments.training.methods import SINGLE_TASK
from samo_jax.experiments.training.runs import Metrics, Results, Run

PUBLISHED = "published single-task results"
_MOST_COLUMNS = 12


def grouped(columns: list[Column]) -> dict[str, list[int]]:
    """Columns of a table by name: of many metrics, those of one name make one."""
    groups: dict[str, list[int]] = {}
    for k, column in enumerate(columns):
        many = len(columns) > _MOST_COLUMNS
        title = f"mean {column.quantity()}" if many else column.title()
        groups.setdefault(title, []).append(k)
    return groups


class Evaluated(Protocol):
    """Run, or another thing that has metrics."""

    @property
    def metrics(self) -> Metrics:
        """Metrics of each task."""
        ...


def finals(columns: list[Column], runs: Mapping[int, Evaluated]) -> np.ndarray:
    """The metrics after training, shape (seeds, columns)."""
    return np.array(
        [[run.metrics[c.task][c.metric] for c in columns] for run in runs.values()]
    )


def baseline(columns: list[Column], results: Results) -> str:
    """The baseline, which Delta m is relative to.

    Published single-task results, else single-task training, else the first method.
    """
    if is_published(columns):
        return PUBLISHED
    return SINGLE_TASK if SINGLE_TASK in results else next(iter(results))


def delta_m(columns: list[Column], results: Results) -> dict[str, np.ndarray]:
    """Delta m in percent by method, shape (seeds,)."""
    reference = _reference(columns, results)
    return {m: relative(columns, runs, reference) for m, runs in results.items()}


def delta_m_caption(columns: list[Column], results: Results) -> str:
    """The caption that says Delta m's baseline, and the columns that it leaves out."""
    caption = f"Δm: against {baseline(columns, results)}, lower is better."
    out = [
        f"{column.task} {column.name()}"
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
    if is_published(columns):
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


def best_radius(scores: Mapping[float, Any]) -> float:
    """The radius with the lowest mean score; with the worst, training diverges.

    >>> best_radius({0.1: [1.0, float("nan")], 0.2: [3.0], 0.5: [4.0]})
    0.2
    """
    means = {rho: np.mean(of) for rho, of in scores.items()}
    return min(means, key=lambda rho: np.nan_to_num(means[rho], nan=np.inf))


def is_published(columns: list[Column]) -> bool:
    """Whether single-task results are published of all metrics."""
    return all(column.single_task is not None for column in columns)
