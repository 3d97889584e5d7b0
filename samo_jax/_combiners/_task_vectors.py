"""Arrays with one entry, or one gradient, per task."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from samo_jax._checks import TaskValues, Vector
from samo_jax._tasks import per_task, uniform_weights
from samo_jax._tree import (
    PyTree,
    accumulator_dtype,
    safe_divide,
    scale_tasks,
    tree_norm,
    zero_unless,
)


def preference_vector(
    preference: TaskValues | None, num_tasks: int, present: ArrayLike | None = None
) -> jax.Array:
    """`preference` as a (K,) array; None: the same for all present tasks, sum one."""
    uniform = uniform_weights(num_tasks, present)
    return per_task("preference", preference, num_tasks, uniform)


def relative_preference(preference: TaskValues | None, num_tasks: int) -> jax.Array:
    """`preference` over its largest entry, shape (K,); None, or all equal: ones."""
    vector = per_task("preference", preference, num_tasks, 1)
    return safe_divide(vector, jnp.max(vector))


def required_losses(losses: Vector | None, method: str, num_tasks: int) -> jax.Array:
    """`losses` as a (K,) array; raise if they are missing."""
    if losses is None:
        raise ValueError(
            f"`losses` is required by {method}, got None: pass `losses=losses` to the "
            "update, as `multitask` does."
        )
    return per_task("losses", losses, num_tasks, 0)


def task_norms(task_grads: PyTree, num_tasks: int) -> jax.Array:
    """One Euclidean norm per task over all leaves, shape (K,)."""
    if not jax.tree.leaves(task_grads):
        return jnp.zeros((num_tasks,), accumulator_dtype())
    return jax.vmap(tree_norm)(task_grads)


def moving_average(
    average: PyTree,
    values: PyTree,
    decay: jax.Array,
    scales: jax.Array,
    present: jax.Array,
) -> PyTree:
    """`decay * average + (1 - decay) * scales_i * values_i`, leaf by leaf.

    Averages of absent tasks, whose values are zero, stay.
    """
    kept = jnp.where(present, decay, 1)
    shares = (1 - kept) * scales
    return jax.tree.map(
        lambda old, leaf: scale_tasks(old, kept) + scale_tasks(leaf, shares),
        average,
        values,
    )


def project_simplex(weights: jax.Array, present: jax.Array) -> jax.Array:
    """The nearest point of the present tasks' probability simplex, shape (K,)."""
    descending = -jnp.sort(-jnp.where(present, weights, -jnp.inf))
    counts = jnp.arange(1, len(weights) + 1).astype(weights.dtype)
    thresholds = (jnp.cumsum(descending) - 1) / counts
    support = jnp.sum(descending > thresholds)
    return zero_unless(present, jnp.maximum(weights - thresholds[support - 1], 0))


def among_present(weights: jax.Array, present: jax.Array) -> jax.Array:
    """Weights on the simplex, those of the present tasks scaled to sum to one.

    Uniform where these have none.
    """
    kept = zero_unless(present, weights)
    total = jnp.sum(kept)
    uniform = uniform_weights(len(weights), present)
    return jnp.where(total > 0, safe_divide(kept, total), uniform)


def put_back(shares: jax.Array, weights: jax.Array, present: jax.Array) -> jax.Array:
    """The inverse: absent tasks keep their weights, the rest goes by the shares.

    It is a little where there is no rest, so that the shares are not forgotten.
    """
    rest = 1 - jnp.sum(zero_unless(~present, weights))
    rest = jnp.maximum(rest, jnp.finfo(weights.dtype).eps)
    return jnp.where(present, rest * shares, weights)
