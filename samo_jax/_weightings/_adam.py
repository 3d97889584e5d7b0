"""Adam for a few numbers inside a solver's state, safe under strict promotion."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from samo_jax._hyperparameters import ScalarOrSchedule, resolve
from samo_jax._tree import accumulator_dtype

_DECAY, _SQUARE_DECAY, _EPS = 0.9, 0.999, 1e-8
_LARGEST = 1e15


class AdamState(NamedTuple):
    """Moments of (K,) gradients, and the steps done."""

    count: jax.Array
    mean: jax.Array
    square: jax.Array


def adam_init(num_tasks: int) -> AdamState:
    """Zero moments."""
    zeros = jnp.zeros((num_tasks,), accumulator_dtype())
    return AdamState(jnp.zeros((), jnp.int32), zeros, zeros)


def adam_step(
    gradient: jax.Array, state: AdamState, learning_rate: ScalarOrSchedule
) -> tuple[jax.Array, AdamState]:
    """What to add to the numbers, shape (K,), and the next state."""
    # Beyond this the square would overflow; Adam sees little but the sign.
    gradient = jnp.clip(gradient, -_LARGEST, _LARGEST)
    rate = jnp.asarray(
        resolve("learning_rate", learning_rate, state.count), gradient.dtype
    )
    count = jnp.asarray(optax.safe_increment(state.count))
    mean = _DECAY * state.mean + (1 - _DECAY) * gradient
    square = _SQUARE_DECAY * state.square + (1 - _SQUARE_DECAY) * jnp.square(gradient)
    steps = count.astype(gradient.dtype)
    unbiased = mean / (1 - _DECAY**steps)
    scale = jnp.sqrt(square / (1 - _SQUARE_DECAY**steps)) + _EPS
    return -rate * unbiased / scale, AdamState(count, mean, square)
