"""Training runs: what is known of one as it goes on, and at its end."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, TypedDict

import numpy as np

from samo_jax.experiments.training.agreement import Agreement
from samo_jax.experiments.training.schema import conform

Metrics: TypeAlias = dict[str, dict[str, float]]  # by task, by metric


class Evaluation(TypedDict):
    """Evaluation of a run after some epochs.

    Attributes:
        epoch: the number of epochs.
        loss: mean loss of each task over the last epoch's batches.
        metrics: metrics of each task, on evaluation examples.
        agreement: agreement of the tasks' gradients; None of a trainer without.
    """

    epoch: int
    loss: dict[str, float]
    metrics: Metrics
    agreement: Agreement | None


class Run(NamedTuple):
    """Outcome of one training run.

    Attributes:
        metrics: metrics of each task, on evaluation examples.
        metrics_curve: about ten `(epoch, metrics)`.
        loss_curve: mean training loss over tasks and batches, of each epoch.
        seconds_per_step: median over the epochs but a process's first, which compiles.
        agreement_curve: `(epoch, agreement)` for each of `metrics_curve`; none of a
            trainer that takes none.
    """

    metrics: Metrics
    metrics_curve: list[tuple[int, Metrics]]
    loss_curve: list[float]
    seconds_per_step: float
    agreement_curve: Sequence[tuple[int, Agreement]] = ()


Results: TypeAlias = dict[str, dict[int, Run]]  # by method, by seed


class Past(NamedTuple):
    """Past of a run that is in training, as JSON has it.

    Attributes:
        losses: losses of each epoch, mean over tasks and batches.
        seconds: seconds per step of each epoch, by the processes that trained.
        evaluations: about ten.
    """

    losses: list[float]
    seconds: list[list[float]]
    evaluations: list[Evaluation]

    def run(self) -> Run:
        """The run, as it is by now."""
        # The first epoch of a process compiles.
        later = [seconds for part in self.seconds for seconds in part[1:]]
        return Run(
            metrics=self.evaluations[-1]["metrics"],
            metrics_curve=[(of["epoch"], of["metrics"]) for of in self.evaluations],
            loss_curve=self.losses,
            seconds_per_step=float(np.median(later or self.seconds[0])),
            agreement_curve=[
                (of["epoch"], of["agreement"])
                for of in self.evaluations
                if of["agreement"]
            ],
        )


class Record(NamedTuple):
    """Record of a checkpoint, beside its arrays.

    Attributes:
        rngs: the states of the generators of batches.
        past: past of the run.
    """

    rngs: list[dict[str, Any]]
    past: Past


def read_record(record: Any, epochs: int) -> tuple[Past, list[np.random.Generator]]:
    """The past of a run that is to have so many epochs, and its generators of batches.

    Raises:
        ValueError: if this is not the record of such a run.
    """
    states, past = conform(record, Record, "its record")
    done = len(past.losses)
    evaluated = [epoch for epoch in evaluated_epochs(epochs) if epoch <= done]
    # Of a shorter run that is made longer there are more.
    evaluations = [of for of in past.evaluations if of["epoch"] in evaluated]
    if not 0 < done <= epochs or [of["epoch"] for of in evaluations] != evaluated:
        raise ValueError(f"its record is not that of a run of {epochs} epochs")
    if not all(past.seconds) or sum(map(len, past.seconds)) != done:
        raise ValueError("its record lacks the times of some epochs")
    rngs = [np.random.default_rng(0) for _ in range(2)]
    for rng, state in zip(rngs, states, strict=True):
        rng.bit_generator.state = state
    return past._replace(evaluations=evaluations), rngs


def evaluated_epochs(epochs: int) -> list[int]:
    """The epochs after which there is an evaluation: about ten, and the last."""
    every = max(epochs // 10, 1)
    return [*range(every, epochs, every), epochs]


def merged(runs: Sequence[Run]) -> Run:
    """The run of several networks as one: their step times are added."""

    def joined(metrics):
        return {task: of for part in metrics for task, of in part.items()}

    return Run(
        metrics=joined([run.metrics for run in runs]),
        metrics_curve=[
            (parts[0][0], joined([metrics for _, metrics in parts]))
            for parts in zip(*(run.metrics_curve for run in runs), strict=True)
        ],
        loss_curve=np.mean([run.loss_curve for run in runs], axis=0).tolist(),
        seconds_per_step=sum(run.seconds_per_step for run in runs),
        agreement_curve=[of for run in runs for of in run.agreement_curve],
    )
