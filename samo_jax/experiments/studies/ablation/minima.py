"""Minima: how sharp the one is that a training run has found."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import samo_jax
from samo_jax.experiments.problems.benchmark import Benchmark
from samo_jax.experiments.reports.sharpness import (
    hessian_eigenvalues,
    loss_slice,
    random_directions,
)
from samo_jax.experiments.training.train_step import task_losses

BATCHES = 4
EXTENT = 0.5
POINTS = 15
_EIGENVALUES = 5


class Minimum(NamedTuple):
    """Minimum as training examples see it, in the shared parameters.

    Attributes:
        cosine: mean cosine between the gradients of two tasks, over all batches.
        conflicts: share of these with a negative one.
        eigenvalues: the five largest of the Hessian of the mean loss on the first
            `BATCHES` batches, descending.
        heights: loss on a square around the minimum, of `loss_slice`.
    """

    cosine: float
    conflicts: float
    eigenvalues: list[float]
    heights: list[list[float]]

    def has_shape(self) -> bool:
        """Whether there are as many eigenvalues and heights as `minimum_at` finds."""
        rows = {len(row) for row in self.heights} | {len(self.heights)}
        return len(self.eigenvalues) == _EIGENVALUES and rows == {POINTS}


def minimum_at(benchmark: Benchmark, params: Any) -> Minimum:
    """The minimum at the trained parameters of a benchmark's network."""
    examples = benchmark.train.take(slice(BATCHES * benchmark.batch_size))
    losses = partial(task_losses, benchmark, benchmark.net(tuple(benchmark.tasks)))
    shared = {name: params[name] for name in params if name not in benchmark.tasks}

    def losses_on(batch):
        return lambda shared: losses(params | shared, batch)[0]

    def loss_fn(shared):
        return jnp.mean(jnp.stack(jax.tree.leaves(losses_on(examples)(shared))))

    @jax.jit
    def gramian(batch):
        return samo_jax.gramian(samo_jax.task_gradients(losses_on(batch), shared))

    batches = benchmark.train.batches(benchmark.batch_size)
    gramians = jnp.stack([gramian(batch) for batch in batches])
    pairs = np.triu_indices(len(benchmark.tasks), 1)
    directions = random_directions(jax.random.key(0), shared)
    return Minimum(
        cosine=float(jnp.mean(samo_jax.gradient_cosines(gramians)[:, *pairs])),
        conflicts=float(jnp.mean(samo_jax.conflict_rate(gramians))),
        eigenvalues=hessian_eigenvalues(loss_fn, shared, _EIGENVALUES).tolist(),
        heights=loss_slice(loss_fn, shared, directions, EXTENT, POINTS).tolist(),
    )
