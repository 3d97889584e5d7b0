"""DB-MTL: losses balanced by logarithms, gradients by their tracked norms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from samo_jax._combiners._base import (
    moving_average,
    task_norms,
)
from samo_jax._gramian import combine
from samo_jax._hyperparameters import check_nonnegative, check_share
from samo_jax._solvers import Combiner
from samo_jax._tree import (
    PyTree,
    accumulator_dtype,
    cast_like,
    keep_if,
    safe_divide,
    zeros_per_task,
)
from samo_jax._weightings._base import usable_losses


class DBMTLState(NamedTuple):
    """State of `db_mtl_momentum`.

    Attributes:
        step: shape (), int32, updates done.
        average: E, like the shared parameters with a leading task axis, float32
            (float64 under x64); 0 at first.
    """

    step: jax.Array
    average: PyTree


def db_mtl_momentum(decay: float = 0.9, *, power: float = 0.0) -> Combiner:
    """DB-MTL: moving averages of the log losses' gradients, made equally long.

    At step t = 1, 2, ... with `b_t = decay / t^power`:

    `E_i <- b_t E_i + (1 - b_t) g_i / L_i`,
    `d = sum_i w_i E_i`, `w_i = max_j ||E_j|| / (K ||E_i||)`.

    The averages start at 0, uncorrected, so that the first directions are short. The
    published d is K times this one. Heads keep the gradients of their losses (LibMTL
    trains them on the log losses). Costs K float32 copies of the shared parameters.

    The averages are momentum already: let an optimiser without momentum follow, or
    choose a smaller decay.

    Args:
        decay: of the moving averages, in [0, 1]. 0: none.
        power: exponent of the decay's own decay, non-negative. 0: constant.

    Returns:
        A `Combiner`, whose weights are those of the averages; a task whose average is 0
        has weight 0. On a step with a gradient that is not finite, or a loss that is
        not finite or not positive, its state does not change, and d is that of the
        averages so far.

    Raises:
        ValueError: if an argument is out of its range.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> combiner = samo_jax.db_mtl_momentum(decay=0.0)
        >>> task_grads = jnp.array([[2.0, 0.0], [0.0, 4.0]])
        >>> state = combiner.init(task_grads[0], 2)
        >>> direction, weights, _ = combiner.update(
        ...     task_grads, state, losses=jnp.array([1.0, 4.0])
        ... )
        >>> print(weights, direction)
        [0.5 1. ] [1. 1.]

    References:
        Lin et al., `Dual-Balancing for Multi-Task Learning
        <https://arxiv.org/abs/2308.12029>`_, 2023
    """
    check_share("decay", decay, "0 keeps no history.")
    check_nonnegative("power", power, "0 keeps `decay` constant.")

    def init(params, num_tasks):
        return DBMTLState(
            jnp.zeros((), jnp.int32),
            zeros_per_task(params, num_tasks, accumulator_dtype()),
        )

    def update(task_grads, state, *, losses, **extra_args):
        del extra_args
        grad_norms = task_norms(task_grads, losses.shape[0])
        losses = jnp.asarray(losses, grad_norms.dtype)
        usable = usable_losses(losses, positive=True)
        usable &= jnp.all(jnp.isfinite(grad_norms))

        step = jnp.asarray(optax.safe_increment(state.step))
        keep = jnp.asarray(decay, losses.dtype)
        keep = keep * step.astype(losses.dtype) ** -jnp.asarray(power, losses.dtype)
        scales = 1 / jnp.where(usable, losses, 1)
        average = moving_average(state.average, task_grads, keep, scales)
        usable &= jnp.all(jnp.isfinite(task_norms(average, len(losses))))
        state = keep_if(usable, DBMTLState(step, average), state)

        norms = task_norms(state.average, len(losses))
        weights = safe_divide(jnp.max(norms), norms) / len(losses)
        direction = combine(weights, state.average)
        return cast_like(direction, task_grads), weights, state

    return Combiner(init, update)
