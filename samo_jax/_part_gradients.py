"""`PartGradients`: losses and sums at shared points, and a sweep over the tasks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._absent_tasks import is_finite
from samo_jax._gramian import combine
from samo_jax._shared_points import all_at_points, at_points
from samo_jax._task_loop import Unroll, is_unrolled, map_tasks
from samo_jax._tasks import LossFn
from samo_jax._tree import PyTree, each, zero_unless


class Rows(NamedTuple):
    """Gradients of some tasks by one array.

    Attributes:
        tasks: the tasks, in order; the others' losses do not depend on the array.
        values: gradients of these tasks, shape (len(tasks), ...).
        is_common: whether the array counts in the Gramian, as it is of no head.
        is_parameter: whether it is a parameter, and not computed from examples.
    """

    tasks: tuple[int, ...]
    values: jax.Array
    is_common: bool
    is_parameter: bool


class Sweep(NamedTuple):
    """The gradients of all tasks by a part of a model.

    Attributes:
        finite: whether each task's loss and gradients are finite, shape (K,).
        weighted_gradient: `weighted_gradient(weights)`, as that of `PartGradients`,
            from what the sweep has.
        rows: the gradients, zero where not finite. Empty: they were not held at once.
        gramian: Gramian of the gradients, shape (K, K), anything where one is not
            finite. None: that of the rows.
        task_grads: the gradients that an `Aggregator` combines, a pytree with a leading
            task axis. None: tasks have several points, or gradients are not held.
        pull_back: gradient by parameters of a direction like `task_grads`.
    """

    finite: jax.Array
    weighted_gradient: Callable[[jax.Array], PyTree]
    rows: list[Rows]
    gramian: jax.Array | None = None
    task_grads: PyTree = None
    pull_back: Callable[[PyTree], PyTree] | None = None


class PartGradients(NamedTuple):
    """Losses of K tasks at shared points, and their gradients by a part of a model.

    Attributes:
        losses: each task's loss at its own point, shape (K,).
        weighted_gradient: `weighted_gradient(weights)`, the sum `sum_i w_i g_i` of the
            gradients by all parameters, each at its task's point, in one backward pass
            per point. A task with the weight zero adds nothing, whatever its gradient.
        sweep: the gradients of the tasks one by one.
    """

    losses: jax.Array
    weighted_gradient: Callable[[jax.Array], PyTree]
    sweep: Callable[[], Sweep]


def gradients_by_nothing(
    loss_fn: LossFn, points: Sequence[PyTree], index: jax.Array
) -> PartGradients:
    """Losses and sums alone."""
    at_all = all_at_points(loss_fn, points, index)

    def sweep():
        finite = each(jnp.isfinite, at_all.losses())
        zeros = jnp.zeros((len(index), len(index)))
        return Sweep(finite, at_all.weighted_gradient, [], zeros)

    return PartGradients(at_all.losses(), at_all.weighted_gradient, sweep)


def gradients_by_leaves(
    loss_fn: LossFn,
    points: Sequence[PyTree],
    index: jax.Array,
    *,
    chosen: PyTree,
    unroll: Unroll,
) -> PartGradients:
    """Gradients by the chosen parameters: XLA drops the passes below them.

    Sums of a sweep have its gradients in them.
    """
    num_tasks = len(index)
    one_by_one = at_points(
        loss_fn, points, index, unrolled=is_unrolled(unroll, num_tasks)
    )
    at_all = one_by_one if one_by_one.passes else all_at_points(loss_fn, points, index)

    def sweep():
        def task_part(i):
            loss, gradient = one_by_one.value_and_gradient(i)
            part = jax.tree.map(
                lambda yes, leaf: leaf if yes else None, chosen, gradient
            )
            finite = is_finite(loss, part)
            return finite, jax.tree.map(partial(zero_unless, finite), part)

        finite, parts = map_tasks(task_part, num_tasks, unroll)
        tasks = tuple(range(num_tasks))
        rows = [
            Rows(tasks, leaf, is_common=True, is_parameter=True)
            for leaf in jax.tree.leaves(parts)
        ]

        def weighted_gradient(weights):
            of_part = combine(weights, parts)
            rest = at_all.weighted_gradient(weights)
            return jax.tree.map(
                lambda yes, part, leaf: part if yes else leaf, chosen, of_part, rest
            )

        return Sweep(finite, weighted_gradient, rows)

    return PartGradients(at_all.losses(), at_all.weighted_gradient, sweep)
