"""`keep_finite` and what a step does without: absent tasks, and state with a NaN."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from samo_jax._checks import check_like
from samo_jax._tasks import loss_leaves
from samo_jax._tree import (
    PyTree,
    all_finite,
    safe_divide,
    sum_of_squares,
    total,
    zero_unless,
)


def task_mask_array(task_mask: PyTree, tasks: tuple[str, ...]) -> jax.Array:
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
    squares = total(map(sum_of_squares, jax.tree.leaves(grads)))
    return jnp.isfinite(loss) & jnp.isfinite(squares)


def keep_finite(new: PyTree, old: PyTree) -> PyTree:
    """The state that the clean pass returns, or the old one if that is not finite.

    One batch with a NaN would leave it in batch statistics for good: the parameters
    survive, and every later evaluation is NaN. The state is kept or dropped as a whole,
    with its counters and keys.

    Args:
        new: the state after the clean pass: any pytree, such as Flax's `batch_stats`
            or an nnx `State`. Floating-point leaves decide.
        old: the state before, with the same structure and shapes.

    Returns:
        A pytree like `old`, in its dtypes.

    Raises:
        ValueError: if the structures or shapes differ.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> old = {"mean": jnp.zeros(2), "count": jnp.array(3)}
        >>> new = {"mean": jnp.array([1.0, jnp.nan]), "count": jnp.array(4)}
        >>> print(samo_jax.keep_finite(new, old))
        {'count': Array(3, ...), 'mean': Array([0., 0.], dtype=float32)}
    """
    check_like("new", new, "old", old, "Pass the state before the clean pass as `old`.")
    new, old = jax.tree.map(jnp.asarray, (new, old))
    floats = [x for x in jax.tree.leaves(new) if jnp.issubdtype(x.dtype, jnp.inexact)]
    finite = all_finite(floats)

    def choose(new_leaf, old_leaf):
        if new_leaf.dtype != old_leaf.dtype:
            new_leaf = new_leaf.astype(old_leaf.dtype)
        return jnp.where(finite, new_leaf, old_leaf)

    return jax.tree.map(choose, new, old)


def names_present(function: Callable[..., Any]) -> bool:
    """Whether a function takes `present` by name."""
    return "present" in inspect.signature(function).parameters


def fill_in(losses: jax.Array, present: jax.Array) -> jax.Array:
    """The losses, absent tasks having the mean of the others, shape (K,)."""
    count = jnp.sum(present, dtype=losses.dtype)
    mean = safe_divide(jnp.sum(zero_unless(present, losses)), count)
    return jnp.where(present, losses, mean)


def share_out(
    weights: jax.Array, present: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Weights whose sum the present tasks have alone, and by what they have grown."""
    if present is None:
        return weights, jnp.ones((), weights.dtype)
    kept = zero_unless(present, weights)
    growth = safe_divide(jnp.sum(weights), jnp.sum(kept))
    growth = jnp.where(jnp.all(present), 1, growth)
    return kept * growth, growth


def among_present(gramian: jax.Array, present: jax.Array) -> jax.Array:
    """The Gramian, zero in the rows and columns of absent tasks."""
    return zero_unless(present[:, None] & present[None, :], gramian)


def select_tasks(present: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """`new` of the present tasks, else `old`, along the leading task axis."""

    def select(new_leaf, old_leaf):
        axes = tuple(range(1, new_leaf.ndim))
        return jnp.where(jnp.expand_dims(present, axes), new_leaf, old_leaf)

    return jax.tree.map(select, new, old)
