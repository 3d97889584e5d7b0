"""From a function of the losses to a solver that never leaves the finite numbers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._solvers._base import Solver, uniform_weights
from samo_jax._tree import accumulator_dtype, keep_if


class WeightingState(NamedTuple):
    """State of the loss weightings.

    Attributes:
        last_weights: shape (K,), the last weights (before the first update: uniform),
            kept where the losses allow none.
        method_state: what the method itself remembers, or ().
    """

    last_weights: jax.Array
    method_state: Any


def weighting(
    init: Callable[[int], Any],
    step: Callable[..., tuple[jax.Array, Any]],
    *,
    positive: bool,
) -> Solver:
    """A `Solver` of `step(losses, method_state, **extra_args) -> (weights, state)`.

    Where a loss is not finite (or not positive, with `positive`), or a weight would not
    be finite, the last weights are returned and the state does not change.
    """

    def init_state(num_tasks: int) -> WeightingState:
        return WeightingState(uniform_weights(num_tasks), init(num_tasks))

    def update(gramian, state, *, losses, **extra_args):
        del gramian
        losses = jnp.asarray(losses, accumulator_dtype())
        usable = usable_losses(losses, positive=positive)
        # Ones stand in, so that no NaN arises even where it would be dropped.
        weights, method_state = step(
            jnp.where(usable, losses, 1), state.method_state, **extra_args
        )
        usable &= jnp.all(jnp.isfinite(weights))
        state = keep_if(usable, WeightingState(weights, method_state), state)
        return state.last_weights, state

    return Solver(init_state, update, linear=True)


def scalarization(
    loss_fn: Callable[[jax.Array], jax.Array], *, positive: bool = False
) -> Solver:
    """A `Solver` whose weights are the gradient of a scalar function of losses."""

    def step(losses, state, **extra_args):
        del extra_args
        return jax.grad(loss_fn)(losses), state

    return weighting(lambda _num_tasks: (), step, positive=positive)


def usable_losses(losses: jax.Array, *, positive: bool) -> jax.Array:
    """Whether all losses are finite (and positive)."""
    usable = jnp.isfinite(losses)
    return jnp.all(usable & (losses > 0) if positive else usable)


def safe_norm(vector: jax.Array) -> jax.Array:
    """Euclidean norm whose gradient at zero is zero."""
    squared = jnp.sum(jnp.square(vector))
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)
