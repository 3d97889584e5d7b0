"""`moco`: stochastic multi-objective descent with gradient tracking."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from samo_jax._checks import check_nonnegative, check_share
from samo_jax._combiners._task_vectors import (
    among_present,
    moving_average,
    project_simplex,
    put_back,
    required_losses,
    task_norms,
)
from samo_jax._combiners._types import Aggregator
from samo_jax._gramian import combine, gramian
from samo_jax._named import named
from samo_jax._tasks import present_tasks, uniform_weights
from samo_jax._tree import (
    PyTree,
    accumulator_dtype,
    cast_like,
    safe_divide,
    select,
    zero_unless,
    zeros_per_task,
)


class MoCoState(NamedTuple):
    """State of `moco`.

    Attributes:
        step: shape (), int32, updates done.
        weights: weights lambda on the simplex, shape (K,); uniform at first. Present
            tasks change theirs among themselves.
        tracked: averages Y like the shared parameters with a leading task axis,
            float32 (float64 under x64); 0 at first.
    """

    step: jax.Array
    weights: jax.Array
    tracked: PyTree


@named
def moco(
    beta: float = 0.5,
    gamma: float = 0.1,
    rho: float = 0.0,
    *,
    decay: float = 0.5,
    normalize: bool = True,
) -> Aggregator:
    """MoCo: the min-norm weights of tracked gradients, one projected step at a time.

    At step t = 1, 2, ... with `beta_t = beta / t^decay`, `gamma_t = gamma / t^decay`:

    `Y_i <- Y_i - beta_t (Y_i - L_i g_i / ||g_i||)`,
    `w <- Proj_simplex(w - gamma_t (Y Y' + rho I) w)`, `d = Y'w`.

    Tracking takes the bias out of MGDA's direction under minibatch noise; rho pulls the
    weights together. LibMTL replaces the projection by a softmax of the weights, which
    holds them near uniform. Costs K float32 copies of the shared parameters.

    Tracking is momentum already: let an optimiser without momentum follow, or choose
    `decay=0`.

    Args:
        beta: tracking rate, in [0, 1].
        gamma: step size of the weights, non-negative.
        rho: regularisation of the weights, non-negative.
        decay: exponent of the rates' decay, non-negative. 0: constant rates.
        normalize: track `L_i g_i / ||g_i||` as the implementations in use do, else g_i
            as the analysis does; gamma must then suit the gradients' scale.

    Returns:
        An `Aggregator`. On a step with a gradient (or loss) that is not finite its
        state does not change, and d is that of the gradients tracked so far. With
        `normalize`, a task whose gradient is 0 counts as absent: Y_i waits, and d is
        that without it.

    Raises:
        ValueError: if an argument is out of its range.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> combiner = samo_jax.moco(beta=1.0, gamma=0.05, normalize=False)
        >>> task_grads = jnp.array([[2.0, 0.0], [0.0, 4.0]])
        >>> state = combiner.init(task_grads[0], 2)
        >>> direction, weights, _ = combiner.update(
        ...     task_grads, state, losses=jnp.ones(2)
        ... )
        >>> print(weights, direction)
        [0.65 0.35] [1.3 1.4]

    References:
        Fernando et al., `Mitigating Gradient Bias in Multi-objective Learning: A
        Provably Convergent Stochastic Approach <https://arxiv.org/abs/2210.12624>`_,
        2023
    """
    check_share("beta", beta, "1 tracks the last gradients alone.")
    check_nonnegative("gamma", gamma, "0 keeps the weights uniform.")
    check_nonnegative("rho", rho, "0 switches it off.")
    check_nonnegative("decay", decay, "0 keeps the rates constant.")

    def init(params, num_tasks):
        return MoCoState(
            step=jnp.zeros((), jnp.int32),
            weights=uniform_weights(num_tasks),
            tracked=zeros_per_task(params, num_tasks, accumulator_dtype()),
        )

    def update(task_grads, state, *, losses=None, present=None, **extra_args):
        del extra_args
        num_tasks, dtype = len(state.weights), state.weights.dtype
        present = present_tasks(present, num_tasks)
        norms = task_norms(task_grads, num_tasks)
        usable = jnp.all(jnp.isfinite(norms))
        scales = jnp.ones_like(norms)
        if normalize:
            present &= norms != 0
            losses = required_losses(losses, "moco()", num_tasks)
            losses = zero_unless(present, losses)
            usable &= jnp.all(jnp.isfinite(losses))
            scales = safe_divide(losses, norms)

        step = jnp.asarray(optax.safe_increment(state.step))
        shrink = step.astype(dtype) ** -jnp.asarray(decay, dtype)
        kept = 1 - jnp.asarray(beta, dtype) * shrink
        tracked = moving_average(state.tracked, task_grads, kept, scales, present)
        old = weights = among_present(state.weights, present)
        if jax.tree.leaves(tracked):
            slope = jnp.matmul(gramian(tracked), weights, precision="highest")
            slope += jnp.asarray(rho, dtype) * weights
            weights = project_simplex(
                weights - jnp.asarray(gamma, dtype) * shrink * slope, present
            )
        usable &= jnp.all(jnp.isfinite(weights))
        weights = jnp.where(usable, weights, old)
        new = MoCoState(step, put_back(weights, state.weights, present), tracked)
        state = select(usable, new, state)
        direction = combine(weights, state.tracked)
        return cast_like(direction, task_grads), weights, state

    return Aggregator(init, update)
