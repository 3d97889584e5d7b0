"""Examples of which each task has its own, in memory, in batches of equal size."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from samo_jax.experiments.problems.benchmark import Examples


class OwnExamples(NamedTuple):
    """Inputs and labels of each task.

    A batch has inputs (K, B, ...), the tasks in order, and labels (B,) of each task. In
    training, B examples of each task are drawn: those of a task come in random order,
    and begin anew when all have come. In evaluation there is one batch of all; labels
    of a task with fewer examples are NaN at the end.

    Attributes:
        parts: examples by task, with the labels of that task alone.
    """

    parts: dict[str, Examples]

    @property
    def num_examples(self) -> int:
        """The greatest number of a task."""
        return max(part.num_examples for part in self.parts.values())

    def only(self, tasks: Sequence[str]) -> "OwnExamples":
        """The examples of these tasks alone."""
        return OwnExamples({task: self.parts[task] for task in tasks})

    def batches(
        self, batch_size: int, rng: np.random.Generator | None = None
    ) -> Iterator[Examples]:
        """One epoch: as many batches as the largest task fills, or one of all."""
        if rng is None:
            yield self._padded(self.num_examples)
            return
        steps = self.num_examples // batch_size
        rows = {
            task: _endless(part.num_examples, steps * batch_size, rng)
            for task, part in self.parts.items()
        }
        for step in range(steps):
            now = slice(step * batch_size, (step + 1) * batch_size)
            taken = {
                task: part.take(rows[task][now]) for task, part in self.parts.items()
            }
            yield OwnExamples(taken)._padded(batch_size)

    def uniform(self) -> "OwnExamples":
        """The examples themselves: their batches have one shape."""
        return self

    def _padded(self, size: int) -> Examples:
        """The examples with inputs (K, size, ...) and labels (size,)."""
        inputs, labels = [], {}
        for task, part in self.parts.items():
            pad = size - part.num_examples
            widths = [(0, pad)] + [(0, 0)] * (part.inputs.ndim - 1)
            inputs.append(np.pad(part.inputs, widths))
            label = part.labels[task]
            labels[task] = np.pad(label, (0, pad), constant_values=np.nan)
        return Examples(np.stack(inputs), labels)


def _endless(count: int, total: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers below a count in one random order after the other."""
    orders = [rng.permutation(count) for _ in range(-(-total // count))]
    return np.concatenate(orders)[:total]
