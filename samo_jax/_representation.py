"""`representation`, and the gradients of tasks by what they have in common."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._absent_tasks import select_tasks
from samo_jax._by_task import ByTask
from samo_jax._gramian import combine
from samo_jax._jaxprs import Cut, cut_at_representation, mark_representation
from samo_jax._labels import SHARED
from samo_jax._shared_points import SharedPoints, all_at_points, look_into, select_point
from samo_jax._task_loop import Unroll, map_tasks
from samo_jax._tasks import LossFn, loss_leaves, stack_losses
from samo_jax._tree import PyTree, accumulator_dtype, sum_of_squares, zero_unless


def representation(z: PyTree) -> PyTree:
    """The representation that all heads read, marked for `gramian_of`.

    It returns the same arrays. Where the marks are, `multitask(...,
    gramian_of="representation")` cuts a loss function in two: the trunk above, the
    heads below. Mark in front of the first head, inside a module or not, under
    `jax.jit`, `jax.checkpoint` or at the end of a scanned trunk; several arrays if
    heads read several.

    Args:
        z: a pytree of arrays.

    Returns:
        A pytree like `z`.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> def loss_fn(params):
        ...     z = samo_jax.representation(jnp.tanh(params["trunk"]))
        ...     return {name: jnp.vdot(params[name], z) for name in ("a", "b")}
        >>> loss_fn({"trunk": jnp.zeros(2), "a": jnp.ones(2), "b": jnp.ones(2)})["a"]
        Array(0., dtype=float32)
    """
    return mark_representation(z)


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


class PartGradients(NamedTuple):
    """Losses of K tasks at shared points, and their gradients by a part of a model.

    Attributes:
        losses: each task's loss at its own point, shape (K,).
        rows: gradients by each array of the part.
        pull_back_rows: `pull_back_rows(weights, rows)`, the sum `sum_i w_i g_i` of the
            gradients by all parameters.
        pull_back: gradient by parameters of a direction by arrays of the part, in the
            order of `rows`. None: tasks have several points, or parts are parameters.
    """

    losses: jax.Array
    rows: list[Rows]
    pull_back_rows: Callable[[jax.Array, list[Rows]], PyTree]
    pull_back: Callable[[list[jax.Array]], PyTree] | None

    def are_finite(self) -> jax.Array:
        """Whether each task's loss and its gradients are finite, shape (K,)."""
        squares = jnp.zeros_like(self.losses, accumulator_dtype())
        for rows in self.rows:
            of_tasks = jax.vmap(sum_of_squares)(rows.values)
            squares = squares.at[jnp.array(rows.tasks)].add(of_tasks)
        return jnp.isfinite(self.losses) & jnp.isfinite(squares)

    def weighted_gradient(self, weights: jax.Array) -> PyTree:
        """`sum_i w_i g_i`, each gradient by all parameters at its task's point."""
        return self.pull_back_rows(weights, self.rows)

    def only(self, present: jax.Array) -> "PartGradients":
        """Gradients that are zero for absent tasks."""

        def present_rows(rows):
            there = present[jnp.array(rows.tasks)]
            zeros = jnp.zeros_like(rows.values)
            return rows._replace(values=select_tasks(there, rows.values, zeros))

        return self._replace(rows=list(map(present_rows, self.rows)))


def gradients_by_leaves(
    loss_fn: LossFn,
    points: Sequence[PyTree],
    index: jax.Array,
    *,
    leaves: Callable[[PyTree], list[jax.Array]],
    unroll: Unroll,
) -> PartGradients:
    """Gradients by some parameters: XLA drops the passes below them."""
    at_all = all_at_points(loss_fn, points, index)

    def loss_and_part(i):
        loss, gradient = at_all.value_and_gradient(i)
        return loss, leaves(gradient)

    losses, parts = map_tasks(loss_and_part, len(index), unroll)
    tasks = tuple(range(len(index)))
    return PartGradients(
        losses,
        [Rows(tasks, part, is_common=True, is_parameter=True) for part in parts],
        lambda weights, _: at_all.weighted_gradient(weights),
        pull_back=None,
    )


def gradients_by_nothing(
    loss_fn: LossFn, points: Sequence[PyTree], index: jax.Array
) -> PartGradients:
    """Losses and weighted sums alone, in one backward pass per point."""
    at_all = all_at_points(loss_fn, points, index)
    return PartGradients(
        at_all.losses(), [], lambda w, _: at_all.weighted_gradient(w), pull_back=None
    )


def gradients_by_representation(
    loss_fn: LossFn,
    points: Sequence[PyTree],
    index: jax.Array,
    *,
    labels: PyTree,
    unroll: Unroll,
) -> PartGradients:
    """Gradients by the features: each is a backward pass through the heads alone.

    Raises:
        ValueError: if no representation is found, or the losses are by task.
    """
    if isinstance(loss_fn, ByTask):
        raise ValueError(
            "`gramian_of` 'representation' needs one representation of all tasks, got "
            "losses of `by_task`, each with examples of its own. Leave it out."
        )
    cut = cut_at_representation(lambda p: loss_leaves(loss_fn(p)), points[0])
    forward = partial(jax.vjp, cut.trunk, has_aux=True)
    if len(points) > 1:
        forward = jax.jit(forward)
    values, pullbacks, others = zip(*map(forward, points), strict=True)
    make_rows = _joint_rows if cut.is_joint else _separate_rows
    losses, parts = make_rows(cut, values, others, index, unroll)
    is_shared = [label == SHARED for label in jax.tree.leaves(labels)]
    rows = [
        Rows(
            tasks,
            part,
            is_common=any(is_shared[n] for n in feature.parameters),
            is_parameter=feature.is_parameter,
        )
        for feature, (tasks, part) in zip(cut.features, parts, strict=True)
    ]

    def pull_back_rows(weights, rows):
        gradients = []
        for point, pullback in enumerate(pullbacks):
            at_point = zero_unless(index == point, weights)
            cotangents = [combine(at_point[jnp.array(r.tasks)], r.values) for r in rows]
            gradients += pullback(cotangents)
        return jax.tree.map(lambda *leaves: sum(leaves), *gradients)

    pull_back = None if len(points) > 1 else lambda d: pullbacks[0](d)[0]
    return PartGradients(losses, rows, pull_back_rows, pull_back)


def _separate_rows(cut: Cut, values, others, index, unroll):
    """Losses, and by feature the tasks and their gradients; each head by itself."""
    del unroll
    losses, by_feature = [], [[] for _ in cut.features]
    for i, head in enumerate(cut.heads):
        reads = [f for f, feature in enumerate(cut.features) if i in feature.readers]
        own = [
            select_point(index[i], *(at_point[f] for at_point in values)) for f in reads
        ]
        rest = [select_point(index[i], *cases) for cases in zip(*others, strict=True)]
        loss, gradients = jax.value_and_grad(head)(own, rest)
        losses.append(loss)
        for f, gradient in zip(reads, gradients, strict=True):
            by_feature[f].append(gradient)
    return stack_losses(losses), [
        (feature.readers, jnp.stack(gradients))
        for feature, gradients in zip(cut.features, by_feature, strict=True)
    ]


def _joint_rows(cut: Cut, values, others, index, unroll):
    """Losses, tasks and gradients alike, through all heads at once, task by task."""

    def forward(features, rest):
        heads = look_into(lambda values: cut.all_heads(values, rest), features).losses
        return jax.vjp(lambda values: stack_losses(heads(values)), features)

    passes = list(map(forward, values, others))
    points = SharedPoints(index, passes, task_gradient=None, is_linear=False)
    losses, parts = map_tasks(points.value_and_gradient, len(index), unroll)
    tasks = tuple(range(len(index)))
    return losses, [(tasks, part) for part in parts]
