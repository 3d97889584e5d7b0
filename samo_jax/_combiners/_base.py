"""Per-task buffers and norms over pytrees with a leading task axis."""

import jax
import jax.numpy as jnp

from samo_jax._tree import (
    PyTree,
    accumulator_dtype,
    leaf_norm,
    scale_tasks,
)


def task_norms(task_grads: PyTree, num_tasks: int) -> jax.Array:
    """One Euclidean norm per task over all leaves, shape (K,)."""
    parts = [jax.vmap(leaf_norm)(leaf) for leaf in jax.tree.leaves(task_grads)]
    if not parts:
        return jnp.zeros((num_tasks,), accumulator_dtype())
    return jax.vmap(leaf_norm)(jnp.stack(parts, axis=1))


def moving_average(
    average: PyTree, values: PyTree, keep: jax.Array, scales: jax.Array
) -> PyTree:
    """`keep * average + (1 - keep) * scales_i * values_i`, leaf by leaf."""
    return jax.tree.map(
        lambda old, leaf: keep * old + (1 - keep) * scale_tasks(leaf, scales),
        average,
        values,
    )


def project_simplex(weights: jax.Array) -> jax.Array:
    """The nearest point of the probability simplex, shape (K,)."""
    descending = -jnp.sort(-weights)
    counts = jnp.arange(1, len(weights) + 1).astype(weights.dtype)
    thresholds = (jnp.cumsum(descending) - 1) / counts
    support = jnp.sum(descending > thresholds)
    return jnp.maximum(weights - thresholds[support - 1], 0)
