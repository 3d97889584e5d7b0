"""Columns of a benchmark's results: the metrics of its tasks."""

from collections.abc import Mapping
from typing import NamedTuple

from samo_jax.experiments.problems.tasks import Task
from samo_jax.experiments.training.runs import Run, evaluated_epochs

_NAMES = {
    "mean_iou": "mean IoU",
    "f1": "F1",
    "auc": "AUC",
    "within_11.25": "within 11.25°",
    "within_22.5": "within 22.5°",
    "within_30": "within 30°",
}


class Column(NamedTuple):
    """Column of results: one metric of one task.

    Attributes:
        task: name of the task.
        metric: name of the metric.
        higher_is_better: whether a higher metric is better.
        unit: unit of the metric, empty if it has none.
        single_task: the published result of single-task training, None if unknown.
    """

    task: str
    metric: str
    higher_is_better: bool
    unit: str = ""
    single_task: float | None = None

    def title(self) -> str:
        """The heading of the column, as a paper has it.

        >>> Column("depth", "absolute_error", False, "m").title()
        'depth absolute error [m]'
        """
        return f"{self.task} {self.quantity()}"

    def quantity(self) -> str:
        """The metric with its unit."""
        return f"{self.name()} [{self.unit}]" if self.unit else self.name()

    def name(self) -> str:
        """The metric as a paper writes it."""
        return _NAMES.get(self.metric, self.metric.replace("_", " "))


def columns(tasks: Mapping[str, Task]) -> list[Column]:
    """All metrics of all tasks."""
    return [
        Column(
            name,
            metric,
            higher_is_better,
            task.units.get(metric, ""),
            task.single_task.get(metric),
        )
        for name, task in tasks.items()
        for metric, higher_is_better in task.higher_is_better.items()
    ]


def fault(columns: list[Column], run: Run, epochs: int | None = None) -> str | None:
    """The fault of a run that a file says to have finished, None if there is none.

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
    evaluated, diagnosed = (
        [epoch for epoch, _ in of] for of in (run.metrics_curve, run.agreement_curve)
    )
    expected = evaluated_epochs(epochs)
    if len(run.loss_curve) != epochs or evaluated != expected:
        return f"it was not trained for {epochs} epochs"
    weights = [of["weights"] for _, of in run.agreement_curve if of["weights"]]
    if diagnosed not in ([], expected) or any(
        of.keys() != names.keys() for of in weights
    ):
        return "its diagnoses are of other epochs or other tasks"
    if not 0 < run.seconds_per_step < float("inf"):
        return f"it took {run.seconds_per_step} seconds a step"
    return None
