"""Problems with 2, 11 and 40 tasks that small networks overfit."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from samo_jax.experiments.data import TASKS, Split, multi_digits
from samo_jax.experiments.faces import ATTRIBUTES, draw_faces
from samo_jax.experiments.model import MultitaskNet, two_digit_net


class Examples(NamedTuple):
    """Inputs and labels.

    Attributes:
        inputs: shape (N, ...).
        labels: shape (N,) for each task.
    """

    inputs: np.ndarray
    labels: dict[str, np.ndarray]

    def take(self, index: np.ndarray) -> "Examples":
        """Those of an index array."""
        return Examples(
            self.inputs[index],
            {task: labels[index] for task, labels in self.labels.items()},
        )

    def only(self, task: str) -> "Examples":
        """With one task alone, named "task"."""
        return self._replace(labels={"task": self.labels[task]})


class Problem(NamedTuple):
    """Networks, their losses and their data.

    Attributes:
        title: for tables.
        net: the network of some tasks.
        loss: `loss(outputs, labels)` of one task, a scalar.
        error: the same for evaluation, in percent, lower is better.
        train: for training.
        evaluation: no example of which is in `train`.
        batch_size: of training.
        epochs: until the training loss is far below the evaluation's.
        learning_rate: of Adam.
    """

    title: str
    net: Callable[[Sequence[str]], MultitaskNet]
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    error: Callable[[jax.Array, jax.Array], jax.Array]
    train: Examples
    evaluation: Examples
    batch_size: int
    epochs: int
    learning_rate: float

    def batches(self, rng: np.random.Generator) -> Iterator[Examples]:
        """Those of one epoch."""
        order = rng.permutation(len(self.train.inputs))
        for index in np.split(order, len(order) // self.batch_size):
            yield self.train.take(index)

    def only(self, task: str) -> "Problem":
        """With one task alone, named "task"."""
        return self._replace(
            train=self.train.only(task), evaluation=self.evaluation.only(task)
        )


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _error_rate(logits, labels):
    return 100 * jnp.mean(logits.argmax(axis=-1) != labels)


def _mean_square(outputs, labels):
    return jnp.mean(jnp.square(outputs[:, 0] - labels))


def _unexplained(outputs, labels):
    return 100 * _mean_square(outputs, labels) / jnp.var(labels)


def digits(split: Split) -> Problem:
    """Which digits are overlaid: CNN."""
    train, evaluation = (Examples(*pairs) for pairs in multi_digits(split))
    return Problem(
        f"digits, {len(TASKS)} tasks",
        two_digit_net,
        _cross_entropy,
        _error_rate,
        train,
        evaluation,
        batch_size=100,
        epochs=20,
        learning_rate=1e-3,
    )


def targets(split: Split, num_tasks: int = 11) -> Problem:
    """Noisy regressions of functions that share some of 30 sinusoids: MLP."""
    rng = np.random.default_rng(0)
    frequencies = 1.5 * rng.normal(size=(10, 30)) / 10**0.5
    mixing = rng.normal(size=(30, num_tasks)) * (rng.random((30, num_tasks)) < 0.3)
    mixing /= np.linalg.norm(mixing, axis=0) / 2**0.5

    def sample(count: int, seed: int) -> Examples:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(count, 10))
        y = np.sin(x @ frequencies) @ mixing + 0.5 * rng.normal(size=(count, num_tasks))
        labels = {f"target{i:02d}": y[:, i] for i in range(num_tasks)}
        return Examples(*jax.tree.map(np.float32, (x, labels)))

    return Problem(
        f"targets, {num_tasks} tasks",
        lambda tasks: MultitaskNet(tuple(tasks), 1, widths=(128, 64)),
        _mean_square,
        _unexplained,
        sample(400, seed=1),
        sample(4000, seed=_EVALUATION_SEEDS[split]),
        batch_size=100,
        epochs=100,
        learning_rate=3e-3,
    )


def attributes(split: Split) -> Problem:
    """Attributes of drawn faces, a tenth of the training labels wrong: MLP."""
    return Problem(
        f"attributes, {len(ATTRIBUTES)} tasks",
        lambda tasks: MultitaskNet(tuple(tasks), 2, widths=(48, 32)),
        _cross_entropy,
        _error_rate,
        Examples(*draw_faces(200, seed=1, size=10, wrong=0.1)),
        Examples(*draw_faces(2000, seed=_EVALUATION_SEEDS[split], size=10)),
        batch_size=50,
        epochs=100,
        learning_rate=5e-3,
    )


_EVALUATION_SEEDS: dict[Split, int] = {"test": 2, "validation": 3}
PROBLEMS: dict[str, Callable[[Split], Problem]] = {
    "digits": digits,
    "targets": targets,
    "attributes": attributes,
}
