"""Texts of different lengths, in batches that are padded to a few lengths."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from samo_jax.experiments.problems.benchmark import Examples


class Texts(NamedTuple):
    """Tokens and labels of texts.

    A batch has texts of about one length. What is left over of a length, less than a
    batch, goes into a batch of the next longer one.

    Attributes:
        tokens: tokens of each text, 0 after its end, shape (N, longest).
        labels: an array with a leading axis N for each task.
        lengths: lengths that batches are padded to, ascending.
    """

    tokens: np.ndarray
    labels: dict[str, np.ndarray]
    lengths: tuple[int, ...]

    @property
    def num_examples(self) -> int:
        """N, the number of texts."""
        return len(self.tokens)

    def take(self, index: np.ndarray | slice) -> "Texts":
        """The texts of an index array or a slice."""
        labels = {task: of[index] for task, of in self.labels.items()}
        return self._replace(tokens=self.tokens[index], labels=labels)

    def only(self, tasks: Sequence[str]) -> "Texts":
        """The texts with the labels of these tasks alone."""
        return self._replace(labels={task: self.labels[task] for task in tasks})

    def uniform(self) -> "Texts":
        """The texts in batches of one length."""
        return self._replace(lengths=self.lengths[-1:])

    def batches(
        self, batch_size: int, rng: np.random.Generator | None = None
    ) -> Iterator[Examples]:
        """One epoch: full batches in random order, or, without one, all by length."""
        order = np.arange(self.num_examples)
        if rng is not None:
            order = rng.permutation(order)
        of_each = np.searchsorted(self.lengths, (self.tokens > 0).sum(axis=1))[order]
        batches, left = [], order[:0]
        for number, length in enumerate(self.lengths):
            rows = np.concatenate([left, order[of_each == number]])
            full = len(rows) // batch_size * batch_size
            batches += [(length, of) for of in rows[:full].reshape(-1, batch_size)]
            left = rows[full:]
        if rng is not None:
            rng.shuffle(batches)
        elif len(left):
            batches.append((self.lengths[-1], left))
        for length, rows in batches:
            labels = {task: of[rows] for task, of in self.labels.items()}
            yield Examples(self.tokens[rows, :length], labels)
