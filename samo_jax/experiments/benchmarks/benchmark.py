"""What a benchmark is: tasks, a network, data, and how long to train."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from samo_jax.experiments.benchmarks.tasks import Task


class Examples(NamedTuple):
    """Inputs and labels.

    Attributes:
        inputs: a pytree of arrays with a leading axis N.
        labels: an array with a leading axis N for each task.
    """

    inputs: Any
    labels: dict[str, np.ndarray]

    def take(self, index: Any) -> "Examples":
        """Those of an index array or a slice."""
        return jax.tree.map(lambda leaf: leaf[index], self)

    def only(self, tasks: Sequence[str]) -> "Examples":
        """With the labels of these tasks alone."""
        return self._replace(labels={task: self.labels[task] for task in tasks})

    def batches(
        self, batch_size: int, rng: np.random.Generator | None = None
    ) -> Iterator["Examples"]:
        """One epoch: full batches in random order, or, without one, all in order."""
        count = len(next(iter(self.labels.values())))
        order = np.arange(count) if rng is None else rng.permutation(count)
        stop = count if rng is None else count - batch_size + 1
        for start in range(0, stop, batch_size):
            yield self.take(order[start : start + batch_size])


class Benchmark(NamedTuple):
    """Tasks, a network and data.

    Attributes:
        tasks: by name, in task order.
        net: the network of some tasks; what belongs to one alone is a top-level
            submodule of its name.
        train: for training.
        evaluation: no example of which is in `train`.
        batch_size: of training.
        epochs: of training.
        learning_rate: of Adam.
        rho: radius.
    """

    tasks: dict[str, Task]
    net: Callable[[Sequence[str]], nn.Module]
    train: Examples
    evaluation: Examples
    batch_size: int
    epochs: int
    learning_rate: float
    rho: float

    def only(self, tasks: Sequence[str]) -> "Benchmark":
        """With these tasks alone."""
        return self._replace(
            tasks={task: self.tasks[task] for task in tasks},
            train=self.train.only(tasks),
            evaluation=self.evaluation.only(tasks),
        )

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches."""
        return len(next(iter(self.train.labels.values()))) // self.batch_size
