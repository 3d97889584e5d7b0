"""Events for TensorBoard. Needs the `tensorboard` extra."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from samo_jax.experiments.training.records import Events, Write
from samo_jax.experiments.training.runs import Evaluation


def event_files() -> Events:
    """A function that opens a folder for the events of one training run."""
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"--tensorboard: {error.name} is missing: "
            "pip install 'samo_jax[tensorboard]'"
        ) from None

    @contextmanager
    def events(folder: Path) -> Iterator[Write]:
        # There are some of a run that an interrupt cut short.
        shutil.rmtree(folder, ignore_errors=True)
        with SummaryWriter(str(folder)) as writer:

            def write(evaluation):
                for tag, value in _scalars(evaluation):
                    writer.add_scalar(tag, value, evaluation["epoch"])
                writer.flush()

            yield write

    return events


def _scalars(evaluation: Evaluation) -> Iterator[tuple[str, float]]:
    for task, loss in evaluation["loss"].items():
        yield f"loss/{task}", loss
    for task, metrics in evaluation["metrics"].items():
        for metric, value in metrics.items():
            yield f"{metric}/{task}", value
    agreement = evaluation["agreement"]
    if agreement is not None:
        yield "gradients/cosine", agreement["cosine"]
        yield "gradients/conflicts", agreement["conflicts"]
        for task, weight in (agreement["weights"] or {}).items():
            yield f"weight/{task}", weight
