"""Gramian and weighted gradient of K tasks without K gradients at once."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from samo_jax._faults import is_finite
from samo_jax._gradients import (
    ValueAndGradient,
    forward_passes,
    look_into,
    products_with_gradients,
    value_and_gradient_of,
    values_and_weighted_gradient,
)
from samo_jax._gramian import gramian
from samo_jax._jaxprs import canonical_convolutions
from samo_jax._perturbations._base import (
    Perturbation,
    Problem,
    has_few_points,
    points_of,
    task_pass,
)
from samo_jax._tasks import SHARED, keep_shared
from samo_jax._tree import PyTree, accumulator_dtype, keep, zeros_like_params

# (weights, present) to gradients whose shared leaves, and whose heads' leaves, count.
WeightedGradient = Callable[[jax.Array, jax.Array], tuple[PyTree, PyTree]]


class Streamed(NamedTuple):
    """What the first sweep has seen.

    Attributes:
        losses: at the perturbed points, shape (K,).
        gramian: of the shared leaves, shape (K, K).
        finite: whether each task's loss and squared gradient norm are, shape (K,).
    """

    losses: jax.Array
    gramian: jax.Array
    finite: jax.Array


def streamed_gramian(
    perturbation: Perturbation,
    problem: Problem,
    state: PyTree,
    block: int,
    over_devices: Callable[[PyTree], PyTree],
) -> tuple[Streamed, WeightedGradient]:
    """Two sweeps over the tasks: what a solver needs, and what its weights make.

    The first holds the gradients of `block` tasks, and takes those of the tasks after
    them one by one: `K (K / block + 1) / 2` backward passes. Where tasks share P
    points, backward passes are known to be linear, and it is less, it holds one, in `K`
    backward passes and `P K` through their transposes.
    """
    gramian_of = partial(_gramian_by_blocks, block=block)
    context = perturbation.prepare(problem, state)

    def weighted(weights, present):
        total = _weighted_sum(value_and_gradient, problem, weights, present)
        return total, total

    if has_few_points(perturbation):
        points, index = points_of(perturbation, problem, context)
        program = look_into(problem.loss_fn, points[0])
        passes = forward_passes(program, points)
        value_and_gradient = value_and_gradient_of(passes, index)
        if program.is_linear:
            _, gradient = values_and_weighted_gradient(passes, index)

            def weighted(weights, present):
                return gradient(weights), gradient(present.astype(weights.dtype))

            if len(problem.tasks) > (2 * len(points) + 1) * block:
                products = products_with_gradients(passes, index)
                gramian_of = partial(
                    _gramian_by_columns, products=lambda g: over_devices(products(g))
                )
    else:
        own_pass = task_pass(perturbation, problem, context)

        def value_and_gradient(i):
            loss, grads, _ = own_pass(i)
            return loss, grads

    def common_gradient(i):
        loss, grads = value_and_gradient(i)
        return loss, over_devices(grads)

    sweep = canonical_convolutions(lambda: gramian_of(common_gradient, problem))
    return sweep(), lambda *args: over_devices(canonical_convolutions(weighted)(*args))


def _gramian_by_blocks(
    value_and_gradient: ValueAndGradient, problem: Problem, block: int
) -> Streamed:
    num_tasks = len(problem.tasks)
    starts = jnp.arange(0, num_tasks, block)
    padded = len(starts) * block

    def shared_gradient(i):
        return keep_shared(value_and_gradient(i)[1], problem.labels)

    def upper_rows(start):
        tasks = jnp.minimum(start + jnp.arange(block), num_tasks - 1)
        losses, grads = lax.map(value_and_gradient, tasks)
        finite = jax.vmap(is_finite)(losses, grads)
        held = keep_shared(grads, problem.labels)

        def add_column(j, rows):
            one = jax.tree.map(lambda leaf: leaf[None], shared_gradient(j))
            return lax.dynamic_update_slice(rows, gramian(held, one), (0, j))

        rows = jnp.zeros((block, padded), accumulator_dtype())
        rows = lax.dynamic_update_slice(rows, gramian(held), (0, start))
        rows = lax.fori_loop(start + block, num_tasks, add_column, rows)
        return losses, finite, rows

    losses, finite, rows = jax.tree.map(
        lambda parts: parts.reshape(padded, *parts.shape[2:])[:num_tasks],
        lax.map(upper_rows, starts),
    )
    upper = jnp.triu(rows[:, :num_tasks])
    return Streamed(losses, upper + jnp.triu(upper, 1).T, finite)


def _gramian_by_columns(
    value_and_gradient: ValueAndGradient,
    problem: Problem,
    products: Callable[[PyTree], jax.Array],
) -> Streamed:
    def loss_and_column(i):
        loss, grads = value_and_gradient(i)
        shared = jax.tree.map(
            lambda label, leaf: keep(label == SHARED, leaf), problem.labels, grads
        )
        return loss, is_finite(loss, grads), products(shared)

    tasks = jnp.arange(len(problem.tasks))
    losses, finite, columns = lax.map(loss_and_column, tasks)
    return Streamed(losses, (columns + columns.T) / 2, finite)


def _weighted_sum(
    value_and_gradient: ValueAndGradient,
    problem: Problem,
    weights: jax.Array,
    present: jax.Array,
) -> PyTree:
    """`sum_i w_i g_i` on shared leaves, `g_i` on the head of task i."""

    def add(i, total):
        def add_leaf(label, old, leaf):
            weight = weights[i] if label == SHARED else 1
            return old + keep(present[i], leaf.astype(old.dtype)) * weight

        return jax.tree.map(add_leaf, problem.labels, total, value_and_gradient(i)[1])

    start = zeros_like_params(problem.params)
    return lax.fori_loop(0, len(problem.tasks), add, start)
