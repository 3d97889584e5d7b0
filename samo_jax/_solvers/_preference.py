"""Preference vectors: how much each task counts."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from samo_jax._solvers._base import uniform_weights


def check_preference(preference: ArrayLike | None) -> None:
    """Raise unless `preference` is None, traced, or a finite non-negative vector."""
    if preference is None or isinstance(preference, jax.core.Tracer):
        return
    values = np.asarray(preference)
    if values.ndim != 1 or not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ValueError(
            "`preference` must be a vector of K finite non-negative numbers, got "
            f"{preference!r}. None: every task counts 1/K."
        )


def preference_vector(preference: ArrayLike | None, num_tasks: int) -> jax.Array:
    """`preference` as a (K,) array; 1/K each where it is None."""
    if preference is None:
        return uniform_weights(num_tasks)
    vector = jnp.asarray(preference, uniform_weights(1).dtype)
    if vector.shape != (num_tasks,):
        raise ValueError(
            f"`preference` must have one entry per task, shape ({num_tasks},), got "
            f"{vector.shape}."
        )
    return vector
