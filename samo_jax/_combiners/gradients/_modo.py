"""`modo`: min-norm weights of two independent batches, one projected step at a time."""

import jax.numpy as jnp

from samo_jax._checks import check_nonnegative
from samo_jax._combiners._task_vectors import among_present, project_simplex, put_back
from samo_jax._combiners._types import Aggregator
from samo_jax._combiners.gradients._double_sampling import double_sampling
from samo_jax._gramian import combine
from samo_jax._named import named
from samo_jax._tasks import present_tasks, uniform_weights


@named
def modo(gamma: float = 0.1, rho: float = 0.1) -> Aggregator:
    """MoDo: `w <- Proj_simplex(w - gamma (M + rho I) w)`, `d = J'w`.

    `M = J1 J2' / m^2` is made of the task gradients of two independent batches, which
    makes the step on the weights unbiased (the Gramian of one noisy batch has the
    noise's covariance on its diagonal). Pass `sample_loss_fns=` to `update`: with one
    further batch, J1 and J2 are the two batches' gradients and J is their mean; with
    two, J1 and J2 are those of the further ones, and J, that of `loss_fn`, is
    independent of w, as in the paper.

    The scale `m = mean_i sqrt(||J1_i|| ||J2_i||)` makes gamma and rho relative to the
    gradients' norm; the reference takes m = 1.

    Args:
        gamma: step size of the weights, non-negative.
        rho: regularisation of the weights towards uniform ones, non-negative.

    Returns:
        An `Aggregator` that needs `sample_grads`, whose state is w, shape (K,), uniform
        at first. Where a gradient is not finite, w stays.

    Raises:
        ValueError: if `gamma` or `rho` is negative or not finite; in `update`, if there
            are not one or two further samples.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> combiner = samo_jax.modo(gamma=0.2, rho=0.0)
        >>> first = jnp.array([[1.0, 0.0], [0.0, 3.0]])
        >>> state = combiner.init(first[0], 2)
        >>> direction, weights, _ = combiner.update(
        ...     first, state, losses=jnp.ones(2), sample_grads=[first]
        ... )
        >>> print(weights.round(3), direction.round(3))
        [0.6 0.4] [0.6 1.2]

    References:
        Chen, Fernando, Ying and Chen, `Three-Way Trade-Off in Multi-Objective Learning:
        Optimization, Generalization and Conflict-Avoidance
        <https://arxiv.org/abs/2305.20057>`_, 2023
    """
    check_nonnegative("gamma", gamma, "0 keeps the weights uniform.")
    check_nonnegative("rho", rho, "0 switches it off.")

    def init(params, num_tasks):
        del params
        return uniform_weights(num_tasks)

    def update(task_grads, state, *, present=None, sample_grads=(), **extra_args):
        del extra_args
        present = present_tasks(present, len(state))
        task_grads, products = double_sampling(
            task_grads, sample_grads, present, "modo"
        )
        old = among_present(state, present)
        slope = jnp.matmul(products, old, precision="highest") + rho * old
        weights = project_simplex(old - gamma * slope, present)
        finite = jnp.isfinite(weights).all()
        weights = jnp.where(finite, weights, old)
        state = jnp.where(finite, put_back(weights, state, present), state)
        return combine(weights, task_grads), weights, state

    return Aggregator(init, update)
