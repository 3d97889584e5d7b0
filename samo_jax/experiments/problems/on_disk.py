"""Examples that do not fit into memory: read one by one when they are needed."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from samo_jax.experiments.data.loading import (
    Augment,
    Source,
    ordered_batches,
    shuffled_batches,
)
from samo_jax.experiments.problems.benchmark import Examples


class OnDisk(NamedTuple):
    """The examples of a source.

    Attributes:
        source: `source[i]` is `(inputs, labels)`, labels by task.
        tasks: tasks whose labels are used.
        augment: `augment(example, rng)`, of training examples.
    """

    source: Source
    tasks: Sequence[str]
    augment: Augment | None = None

    @property
    def num_examples(self) -> int:
        """The number of examples."""
        return len(self.source)

    def only(self, tasks: Sequence[str]) -> "OnDisk":
        """The examples with the labels of these tasks alone."""
        return self._replace(tasks=tasks)

    def batches(
        self, batch_size: int, rng: np.random.Generator | None = None
    ) -> Iterator[Examples]:
        """One epoch: full batches in random order, or, without one, all in order."""
        if rng is None:
            batches = ordered_batches(self.source, batch_size)
            return (self._examples(*batch) for batch in batches)
        return islice(
            self.endless_batches(batch_size, rng), self.num_examples // batch_size
        )

    def uniform(self) -> "OnDisk":
        """The examples themselves: their batches have one shape."""
        return self

    def endless_batches(
        self, batch_size: int, rng: np.random.Generator
    ) -> Iterator[Examples]:
        """Epoch after epoch in random order."""
        seed = int(rng.integers(2**31))
        batches = shuffled_batches(
            self.source, batch_size, seed=seed, augment=self.augment
        )
        return (self._examples(*batch) for batch in batches)

    def _examples(self, inputs, labels) -> Examples:
        return Examples(inputs, {task: labels[task] for task in self.tasks})


class PerTask(NamedTuple):
    """Examples that differ between tasks, such as Office-Home's domains.

    A training batch has one of each task, inputs and labels by task. An epoch ends with
    the greatest number of examples; the other tasks start again. An evaluation batch is
    of one task.

    Attributes:
        parts: examples by task.
    """

    parts: dict[str, OnDisk]

    @property
    def num_examples(self) -> int:
        """The greatest number of a task."""
        return max(part.num_examples for part in self.parts.values())

    def only(self, tasks: Sequence[str]) -> "PerTask":
        """The examples of these tasks alone."""
        return PerTask({task: self.parts[task] for task in tasks})

    def uniform(self) -> "PerTask":
        """The examples themselves: their batches have one shape."""
        return self

    def batches(
        self, batch_size: int, rng: np.random.Generator | None = None
    ) -> Iterator[Examples]:
        """One epoch: full batches in random order, or, without one, all in order."""
        if rng is None:
            for task, part in self.parts.items():
                for batch in part.batches(batch_size):
                    yield Examples({task: batch.inputs}, batch.labels)
            return
        endless = {
            task: part.endless_batches(batch_size, rng)
            for task, part in self.parts.items()
        }
        for _ in range(self.num_examples // batch_size):
            batch = {task: next(batches) for task, batches in endless.items()}
            yield Examples(
                {task: part.inputs for task, part in batch.items()},
                {task: part.labels[task] for task, part in batch.items()},
            )
