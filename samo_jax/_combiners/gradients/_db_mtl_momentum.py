"""`db_mtl_momentum`: balanced log losses, gradients of one tracked norm (DB-MTL)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from samo_jax._checks import TaskValues, check_nonnegative, check_offset, check_share
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._task_vectors import moving_average, task_norms
from samo_jax._combiners._types import Aggregator
from samo_jax._combiners.losses._loss_weighting import shifted_losses, usable_losses
from samo_jax._gramian import combine
from samo_jax._named import named
from samo_jax._tasks import per_task, present_tasks
from samo_jax._tree import (
    PyTree,
    accumulator_dtype,
    cast_like,
    safe_divide,
    select,
    zero_unless,
    zeros_per_task,
)


class DBMTLState(NamedTuple):
    """State of `db_mtl_momentum`.

    Attributes:
        step: shape (), int32, updates done.
        average: averages E like the shared parameters with a leading task axis,
            float32 (float64 under x64); 0 at first.
        unusable: shape (K,), int32, number of updates in which a loss of each task was
            not finite or not above `offset`. While it grows, the averages stand still.
    """

    step: jax.Array
    average: PyTree
    unusable: jax.Array


@named
@by_name("offset")
def db_mtl_momentum(
    decay: float = 0.9, *, power: float = 0.0, offset: TaskValues = 0.0
) -> Aggregator:
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
        decay: decay of the moving averages, in [0, 1]. 0: none.
        power: exponent of the decay's own decay, non-negative. 0: constant.
        offset: one number, or one per task, shape (K,) or by name: `L_i - offset_i`
            stands for L_i. Losses that can be negative need one below their minimum.

    Returns:
        An `Aggregator`, whose weights are those of the averages. A task whose gradient
        is 0 counts as absent: its average waits, and the others' d is that without it.
        On a step with a gradient that is not finite, or a loss that is not finite or
        not above `offset`, no average changes, and d is that of the averages so far.

    Raises:
        ValueError: if an argument is out of its range, or `offset` is neither one
            finite number nor one per task.

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
    check_offset(offset)

    def init(params, num_tasks):
        per_task("offset", offset, num_tasks, 0)
        return DBMTLState(
            step=jnp.zeros((), jnp.int32),
            average=zeros_per_task(params, num_tasks, accumulator_dtype()),
            unusable=jnp.zeros((num_tasks,), jnp.int32),
        )

    def update(task_grads, state, *, losses, present=None, **extra_args):
        del extra_args
        losses = shifted_losses(losses, offset)
        num_tasks, dtype = len(losses), losses.dtype
        grad_norms = task_norms(task_grads, num_tasks)
        present = present_tasks(present, num_tasks) & (grad_norms != 0)
        unusable = present & ~usable_losses(losses, positive=True)
        usable = ~jnp.any(unusable) & jnp.all(jnp.isfinite(grad_norms))

        step = jnp.asarray(optax.safe_increment(state.step))
        kept = jnp.asarray(decay, dtype)
        kept = kept * step.astype(dtype) ** -jnp.asarray(power, dtype)
        scales = 1 / jnp.where(present & usable, losses, 1)
        average = moving_average(state.average, task_grads, kept, scales, present)
        usable &= jnp.all(jnp.isfinite(task_norms(average, num_tasks)))
        step, average = select(usable, (step, average), (state.step, state.average))

        norms = zero_unless(present, task_norms(average, num_tasks))
        weights = safe_divide(jnp.max(norms), norms * jnp.sum(norms > 0, dtype=dtype))
        direction = cast_like(combine(weights, average), task_grads)
        unusable = state.unusable + unusable.astype(jnp.int32)
        return direction, weights, DBMTLState(step, average, unusable)

    return Aggregator(init, update)
