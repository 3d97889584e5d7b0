"""Arguments that several combiners take: one number per task."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from samo_jax._tree import accumulator_dtype


def task_vector(name: str, values: ArrayLike, num_tasks: int) -> jax.Array:
    """`values` as a (K,) array in `accumulator_dtype`; raise if it is not (K,)."""
    vector = jnp.asarray(values, accumulator_dtype())
    if vector.shape != (num_tasks,):
        raise ValueError(
            f"`{name}` must have shape ({num_tasks},), one number per task in the "
            f"order of the loss pytree's leaves, got {vector.shape}."
        )
    return vector


def required_losses(losses: ArrayLike | None, method: str, num_tasks: int) -> jax.Array:
    """`losses` as a (K,) array; raise if they are missing."""
    if losses is None:
        raise ValueError(
            f"`losses` is required by {method}(), got None: call "
            "solver.update(gramian, state, losses=losses). `multitask` passes them."
        )
    return task_vector("losses", losses, num_tasks)
