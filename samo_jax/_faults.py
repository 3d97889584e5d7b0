"""Tasks that a step is better taken without."""

from typing import Any

import jax
import jax.numpy as jnp

from samo_jax._tasks import loss_leaves
from samo_jax._tree import PyTree, keep, safe_divide, sum_of_squares


def task_mask_array(task_mask: Any, tasks: tuple[str, ...]) -> jax.Array:
    """The caller's mask (None: all tasks), shape (K,), bool."""
    if task_mask is None:
        return jnp.ones(len(tasks), bool)
    leaves = [jnp.asarray(leaf) for leaf in loss_leaves(task_mask)]
    if len(leaves) != len(tasks) or any(leaf.ndim for leaf in leaves):
        raise ValueError(
            f"`task_mask` must be a pytree like the losses or one ({len(tasks)},) "
            f"array, got leaves of shapes {[leaf.shape for leaf in leaves]} for "
            f"{', '.join(tasks)}. Say of each task whether the batch has examples of "
            "it."
        )
    return jnp.stack(leaves).astype(bool)


def is_finite(loss: jax.Array, grads: PyTree) -> jax.Array:
    """Whether a task's loss and the squared norms of its gradients are, shape ()."""
    squares = sum(map(sum_of_squares, jax.tree.leaves(grads)))
    return jnp.isfinite(loss) & jnp.isfinite(squares)


def fill_in(losses: jax.Array, present: jax.Array) -> jax.Array:
    """The losses, absent tasks having the mean of the others, shape (K,)."""
    count = jnp.sum(present, dtype=losses.dtype)
    mean = safe_divide(jnp.sum(keep(present, losses)), count)
    return jnp.where(present, losses, mean)


def share_out(
    weights: jax.Array, present: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Weights whose sum the present tasks have alone, and by what they have grown."""
    if present is None:
        return weights, jnp.ones((), weights.dtype)
    kept = keep(present, weights)
    growth = safe_divide(jnp.sum(weights), jnp.sum(kept))
    growth = jnp.where(jnp.all(present), 1, growth)
    return kept * growth, growth
