"""`representation`, and the gradients of tasks by what they have in common."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from samo_jax._absent_tasks import is_finite
from samo_jax._by_task import ByTask
from samo_jax._gramian import combine
from samo_jax._jaxprs import Cut, cut_at_representation, mark_representation
from samo_jax._labels import SHARED
from samo_jax._part_gradients import PartGradients, Rows, Sweep
from samo_jax._shared_points import SharedPoints, look_into, select_point
from samo_jax._task_loop import Unroll, map_tasks
from samo_jax._tasks import LossFn, loss_leaves, stack_losses
from samo_jax._tree import PyTree, zero_unless


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
    passes = list(map(partial(_all_heads, cut), values, others))
    heads = SharedPoints(index, passes, task_gradient=None, is_linear=False)
    is_shared = [label == SHARED for label in jax.tree.leaves(labels)]

    def pull_back(cotangents):
        """Gradient by the parameters, from cotangents of the features at each point."""
        gradients = [
            pullback(at_point)[0]
            for pullback, at_point in zip(pullbacks, cotangents, strict=True)
        ]
        return jax.tree.map(lambda *leaves: sum(leaves), *gradients)

    def weighted_gradient(weights):
        return pull_back(heads.cotangents(weights))

    def sweep():
        if cut.is_joint:
            finite, parts = _joint_rows(heads, unroll)
        else:
            finite, parts = _separate_rows(cut, values, others, index)
        rows = [
            Rows(
                tasks,
                part,
                is_common=any(is_shared[n] for n in feature.parameters),
                is_parameter=feature.is_parameter,
            )
            for feature, (tasks, part) in zip(cut.features, parts, strict=True)
        ]

        def by_rows(weights):
            return pull_back(
                [
                    [_weighted_sum(zero_unless(index == p, weights), r) for r in rows]
                    for p in range(len(points))
                ]
            )

        def pull_back_common(direction):
            zeros = [jnp.zeros_like(r.values[0]) for r in rows]
            known = [
                zero if leaf is None else leaf
                for zero, leaf in zip(zeros, direction, strict=True)
            ]
            return pull_back([known])

        one_point = len(points) == 1
        return Sweep(
            finite,
            by_rows,
            rows,
            task_grads=[_of_all_tasks(r, len(index)) for r in rows]
            if one_point
            else None,
            pull_back=pull_back_common if one_point else None,
        )

    return PartGradients(heads.losses(), weighted_gradient, sweep)


def _all_heads(cut: Cut, features: list[jax.Array], rest: list[jax.Array]):
    """Losses, and the pullback to the features."""
    heads = look_into(lambda values: cut.all_heads(values, rest), features).losses
    return jax.vjp(lambda values: stack_losses(heads(values)), features)


def _separate_rows(cut: Cut, values, others, index):
    """Whether tasks are finite, and by feature the tasks and their gradients."""
    finite, by_feature = [], [[] for _ in cut.features]
    for i, head in enumerate(cut.heads):
        reads = [f for f, feature in enumerate(cut.features) if i in feature.readers]
        own = [
            select_point(index[i], *(at_point[f] for at_point in values)) for f in reads
        ]
        rest = [select_point(index[i], *cases) for cases in zip(*others, strict=True)]
        loss, gradients = jax.value_and_grad(head)(own, rest)
        finite.append(is_finite(loss, gradients))
        for f, gradient in zip(reads, gradients, strict=True):
            by_feature[f].append(zero_unless(finite[-1], gradient))
    return jnp.stack(finite), [
        (feature.readers, jnp.stack(gradients))
        for feature, gradients in zip(cut.features, by_feature, strict=True)
    ]


def _joint_rows(heads: SharedPoints, unroll: Unroll):
    """Gradients through all heads at once, task by task, as `_separate_rows`."""

    def task_rows(i):
        loss, gradients = heads.value_and_gradient(i)
        finite = is_finite(loss, gradients)
        return finite, jax.tree.map(partial(zero_unless, finite), gradients)

    num_tasks = len(heads.index)
    finite, parts = map_tasks(task_rows, num_tasks, unroll)
    return finite, [(tuple(range(num_tasks)), part) for part in parts]


def _weighted_sum(weights: jax.Array, rows: Rows) -> jax.Array:
    """`sum_i w_i g_i`."""
    return combine(weights[jnp.array(rows.tasks)], rows.values)


def _of_all_tasks(rows: Rows, num_tasks: int) -> jax.Array | None:
    """The rows of an array that counts, zero for tasks that do not depend on it."""
    if not rows.is_common:
        return None
    zeros = jnp.zeros((num_tasks, *rows.values.shape[1:]), rows.values.dtype)
    return zeros.at[jnp.array(rows.tasks)].set(rows.values)
