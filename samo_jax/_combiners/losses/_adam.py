"""`adam_step`: Adam for a few numbers inside a weighting's state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from samo_jax._checks import ScalarOrSchedule, resolve
from samo_jax._tree import accumulator_dtype, select, zero_unless

_DECAY, _SQUARE_DECAY, _EPS = 0.9, 0.999, 1e-8
_LARGEST = 1e15


class AdamState(NamedTuple):
    """Moments of K numbers' gradients, over the steps that each has taken part in.

    Attributes:
        step: shape (), int32, steps done, for the learning rate.
        counts: shape (K,), int32, steps that each number has taken part in.
        mean: shape (K,), average of each number's gradients.
        square: shape (K,), average of their squares.
    """

    step: jax.Array
    counts: jax.Array
    mean: jax.Array
    square: jax.Array


def adam_init(num_tasks: int) -> AdamState:
    """Zero moments."""
    zeros = jnp.zeros((num_tasks,), accumulator_dtype())
    counts = jnp.zeros((num_tasks,), jnp.int32)
    return AdamState(jnp.zeros((), jnp.int32), counts, zeros, zeros)


def adam_step(
    gradient: jax.Array,
    state: AdamState,
    learning_rate: ScalarOrSchedule,
    present: jax.Array,
) -> tuple[jax.Array, AdamState]:
    """The step of the present numbers (of others: 0), and the next state."""
    # Beyond this the square would overflow; Adam sees little but the sign.
    gradient = jnp.clip(gradient, -_LARGEST, _LARGEST)
    rate = jnp.asarray(
        resolve("learning_rate", learning_rate, state.step), gradient.dtype
    )
    counts = jnp.asarray(optax.safe_increment(state.counts))
    mean = _DECAY * state.mean + (1 - _DECAY) * gradient
    square = _SQUARE_DECAY * state.square + (1 - _SQUARE_DECAY) * jnp.square(gradient)
    steps = jnp.asarray(counts, gradient.dtype)
    unbiased = mean / (1 - _DECAY**steps)
    scale = jnp.sqrt(square / (1 - _SQUARE_DECAY**steps)) + _EPS
    moments = select(
        present, (counts, mean, square), (state.counts, state.mean, state.square)
    )
    step = jnp.where(jnp.any(present), optax.safe_increment(state.step), state.step)
    return zero_unless(present, -rate * unbiased / scale), AdamState(step, *moments)
