"""Arguments with one number per task."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from samo_jax._tree import accumulator_dtype, safe_divide

Vector: TypeAlias = ArrayLike | Sequence[float]


def per_task(
    name: str, values: Vector | None, num_tasks: int, default: ArrayLike
) -> jax.Array:
    """`values` (one for all, or K of them; None: `default`) as a (K,) array."""
    vector = jnp.asarray(default if values is None else values, accumulator_dtype())
    if vector.shape not in {(), (num_tasks,)}:
        raise ValueError(
            f"`{name}` must be one number per task, shape ({num_tasks},), got shape "
            f"{vector.shape}. Give its entries in the order of the losses."
        )
    return jnp.broadcast_to(vector, (num_tasks,))


def as_numbers(name: str, values: Any) -> np.ndarray:
    """A number or a sequence of them as an array; raise if it is neither."""
    try:
        return np.asarray(values, float)
    except (TypeError, ValueError):
        raise ValueError(
            f"`{name}` must be a sequence of numbers, one per task, got {values!r}. "
            "Give its entries in the order of the losses."
        ) from None


def check_offset(offset: Vector) -> None:
    """Raise unless it is one finite number, or one per task."""
    if isinstance(offset, jax.core.Tracer):
        return
    values = as_numbers("offset", offset)
    if values.ndim > 1 or not np.all(np.isfinite(values)):
        raise ValueError(
            f"`offset` must be one finite number or one per task, got {offset!r}. It "
            "is what the losses never fall below."
        )


def check_preference(preference: Vector | None) -> None:
    """Raise unless the preference is a direction in the non-negative orthant."""
    if preference is None or isinstance(preference, jax.core.Tracer):
        return
    values = as_numbers("preference", preference)
    if not (np.all(np.isfinite(values)) and np.all(values >= 0) and np.any(values > 0)):
        raise ValueError(
            "`preference` must be finite and non-negative with a positive entry, got "
            f"{preference}. None prefers no task."
        )


def preference_vector(
    preference: Vector | None, num_tasks: int, present: ArrayLike | None = None
) -> jax.Array:
    """`preference` as a (K,) array; None: the same for all present tasks, sum one."""
    uniform = uniform_weights(num_tasks, present)
    return per_task("preference", preference, num_tasks, uniform)


def present_tasks(present: ArrayLike | None, num_tasks: int) -> jax.Array:
    """Which tasks take part (None: all), shape (K,), bool; raise on other shapes."""
    if present is None:
        return jnp.ones((num_tasks,), bool)
    present = jnp.asarray(present, bool)
    if present.shape != (num_tasks,):
        raise ValueError(
            f"`present` must be one bool per task, shape ({num_tasks},), got shape "
            f"{present.shape}. None means all tasks."
        )
    return present


def uniform_weights(num_tasks: int, present: ArrayLike | None = None) -> jax.Array:
    """Equal weights of the present tasks (None: all) that sum to one, shape (K,)."""
    shares = present_tasks(present, num_tasks).astype(accumulator_dtype())
    return safe_divide(shares, jnp.sum(shares))


def required_losses(losses: Vector | None, method: str, num_tasks: int) -> jax.Array:
    """`losses` as a (K,) array; raise if they are missing."""
    if losses is None:
        raise ValueError(
            f"`losses` is required by {method}, got None: call "
            "solver.update(gramian, state, losses=losses). `multitask` passes them."
        )
    return per_task("losses", losses, num_tasks, 0)
