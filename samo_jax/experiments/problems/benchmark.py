"""Benchmarks: tasks, a network, data, and a recipe."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import flax.linen as nn
import jax
import numpy as np
import optax

from samo_jax.experiments.problems.tasks import Task


class Examples(NamedTuple):
    """Inputs and labels.

    Attributes:
        inputs: a pytree of arrays with a leading axis N.
        labels: an array with a leading axis N for each task.
    """

    inputs: Any
    labels: dict[str, np.ndarray]

    @property
    def num_examples(self) -> int:
        """N, the number of examples."""
        return len(next(iter(self.labels.values())))

    def take(self, index: Any) -> "Examples":
        """The examples of an index array or a slice."""
        return jax.tree.map(lambda leaf: leaf[index], self)

    def only(self, tasks: Sequence[str]) -> "Examples":
        """The examples with the labels of these tasks alone."""
        return self._replace(labels={task: self.labels[task] for task in tasks})

    def batches(
        self, batch_size: int, rng: np.random.Generator | None = None
    ) -> Iterator["Examples"]:
        """One epoch: full batches in random order, or, without one, all in order."""
        count = self.num_examples
        order = np.arange(count) if rng is None else rng.permutation(count)
        stop = count if rng is None else count - batch_size + 1
        for start in range(0, stop, batch_size):
            yield self.take(order[start : start + batch_size])

    def uniform(self) -> "Examples":
        """The examples themselves: their batches have one shape."""
        return self


class Data(Protocol):
    """Data to train on or evaluate: `Examples` in memory, or others read in time."""

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        ...

    def only(self, tasks: Sequence[str]) -> Any:
        """The data of these tasks alone."""
        ...

    def batches(
        self, batch_size: int, rng: np.random.Generator | None = None
    ) -> Iterator[Examples]:
        """One epoch: full batches in random order, or, without one, all in order."""
        ...

    def uniform(self) -> Any:
        """Data with batches of one shape."""
        ...


DataT = TypeVar("DataT", bound=Data)


def adam(learning_rate: float, *_: int) -> optax.GradientTransformation:
    """Adam with a constant learning rate."""
    return optax.adam(learning_rate)


class Benchmark(NamedTuple, Generic[DataT]):
    """Benchmark: tasks, a network, data and a recipe.

    Attributes:
        tasks: tasks by name, in task order.
        net: the network of some tasks; what belongs to one alone is a top-level
            submodule of its name.
        train: data for training.
        evaluation: no example of which is in `train`.
        batch_size: size of the batches of training.
        epochs: number of epochs of training.
        learning_rate: learning rate of the optimiser.
        rho: radius.
        alpha: share of the global gradient in SAMO's perturbation.
        optimizer: function of the learning rate, the steps in an epoch and the epochs.
        clip_norm: the norm that the shared gradient is clipped to; None: any.
        has_modes: whether the network is called with `train=`, having batch norm or
            dropout.
        evaluation_batch_size: size of the batches of evaluation.
        by_task: whether each task has examples of its own: the inputs of a batch then
            have a leading task axis, and no task's loss needs another's.
        notes: sentences that a reader of the results should know.
        pretrained: parameters that training starts from, of some modules or of all.
        frozen: whether the parameter of a path is not trained. None: all are.
        has_fixed_length: whether the optimiser's schedule depends on the epochs, so
            that a run cannot be lengthened.
    """

    tasks: dict[str, Task]
    net: Callable[[Sequence[str]], nn.Module]
    train: DataT
    evaluation: DataT
    batch_size: int
    epochs: int
    learning_rate: float
    rho: float
    alpha: float = 0.5
    optimizer: Callable[[float, int, int], optax.GradientTransformation] = adam
    clip_norm: float | None = 1.0
    has_modes: bool = False
    evaluation_batch_size: int = 500
    by_task: bool = False
    notes: tuple[str, ...] = ()
    pretrained: Mapping[str, Any] = MappingProxyType({})
    frozen: Callable[[tuple[str, ...]], bool] | None = None
    has_fixed_length: bool = False

    def only(self, tasks: Sequence[str]) -> "Benchmark[DataT]":
        """The benchmark of these tasks alone."""
        return self._replace(
            tasks={task: self.tasks[task] for task in tasks},
            train=self.train.only(tasks),
            evaluation=self.evaluation.only(tasks),
        )

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in an epoch."""
        return self.train.num_examples // self.batch_size
