"""`loss_weighting`: weightings of the losses whose weights are always finite."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._absent_tasks import share_out
from samo_jax._checks import TaskValues, Vector, check_offset
from samo_jax._combiners._types import Weighting
from samo_jax._tasks import per_task, present_tasks, uniform_weights
from samo_jax._tree import accumulator_dtype, select, zero_unless


class LossWeightingState(NamedTuple):
    """State of the loss weightings.

    Attributes:
        last_weights: shape (K,), each task's last weight (before its first update:
            1 / K), kept where the losses allow none.
        method_state: state of the method itself (`log_losses`: of the wrapped
            weighting), or ().
        unusable: shape (K,), int32, number of updates in which a loss of each task
            allowed no weights: not finite, or not above `offset` where the method needs
            that. Where it grows, the method stands still.
    """

    last_weights: jax.Array
    method_state: Any
    unusable: jax.Array


def loss_weighting(
    init: Callable[[int], Any],
    step: Callable[..., tuple[jax.Array, Any]],
    *,
    positive: bool,
    offset: TaskValues = 0.0,
) -> Weighting:
    """A `Weighting` of `step(losses, present, method_state, *, gramian, **extra_args)`.

    It returns weights, which count for the present tasks, and the method's new state.
    Losses are less the offset, and 1 where a task is absent. Where a present one is not
    finite (or not positive, with `positive`), or a weight would not be finite, the last
    weights are returned and the method's state does not change.
    """
    check_offset(offset)

    def init_state(num_tasks: int) -> LossWeightingState:
        per_task("offset", offset, num_tasks, 0)
        return LossWeightingState(
            uniform_weights(num_tasks),
            init(num_tasks),
            jnp.zeros((num_tasks,), jnp.int32),
        )

    def update(gramian, state, *, losses, present=None, **extra_args):
        losses = shifted_losses(losses, offset)
        present = present_tasks(present, len(losses))
        usable = usable_losses(losses, positive=positive)
        # Ones stand in, so that no NaN arises even where it would be dropped.
        weights, method_state = step(
            jnp.where(present & usable, losses, 1),
            present,
            state.method_state,
            gramian=gramian,
            **extra_args,
        )
        unusable = present & ~(usable & jnp.isfinite(weights))
        last, _ = share_out(state.last_weights, present)
        stands = jnp.any(unusable)
        weights = jnp.where(stands, last, zero_unless(present, weights))
        return weights, LossWeightingState(
            jnp.where(present & ~stands, weights, state.last_weights),
            select(stands, state.method_state, method_state),
            state.unusable + unusable.astype(jnp.int32),
        )

    return Weighting(init_state, update, needs_gramian=False)


def scalarization(
    loss_fn: Callable[..., jax.Array],
    *,
    positive: bool = False,
    offset: TaskValues = 0.0,
) -> Weighting:
    """A `Weighting` whose weights are the gradient of `loss_fn(losses, present)`."""

    def step(losses, present, state, **extra_args):
        del extra_args
        return jax.grad(loss_fn)(losses, present), state

    return loss_weighting(lambda _num_tasks: (), step, positive=positive, offset=offset)


def shifted_losses(losses: Vector, offset: TaskValues) -> jax.Array:
    """`losses - offset`, shape (K,), in `accumulator_dtype`."""
    losses = jnp.asarray(losses, accumulator_dtype())
    return losses - per_task("offset", offset, len(losses), 0)


def usable_losses(losses: jax.Array, *, positive: bool) -> jax.Array:
    """Whether each loss is finite (and positive), shape (K,), bool."""
    usable = jnp.isfinite(losses)
    return usable & (losses > 0) if positive else usable


def safe_norm(vector: jax.Array) -> jax.Array:
    """Euclidean norm whose gradient at zero is zero."""
    squared = jnp.sum(jnp.square(vector))
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)
