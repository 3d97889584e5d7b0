"""Evaluations for TensorBoard. Needs the `tensorboard` extra."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TypeAlias

from samo_jax.experiments.benchmarks.training import Evaluation

Write: TypeAlias = Callable[[Evaluation], None]
Events: TypeAlias = Callable[[Path], AbstractContextManager[Write]]  # in a folder


def no_events(_: Path) -> AbstractContextManager[Write]:
    """No events, where nobody has asked for them."""
    return nullcontext(lambda _: None)


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
    look = evaluation["look"]
    if look is not None:
        yield "gradients/cosine", look["cosine"]
        yield "gradients/conflicts", look["conflicts"]
        for task, weight in (look["weights"] or {}).items():
            yield f"weight/{task}", weight
