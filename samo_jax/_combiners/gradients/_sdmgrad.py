"""`sdmgrad`: direction-oriented min-norm weights of two independent batches."""

import jax.numpy as jnp
from jax import lax

from samo_jax._checks import (
    TaskValues,
    check_count,
    check_nonnegative,
    check_preference,
    check_share,
)
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._task_vectors import among_present, project_simplex, put_back
from samo_jax._combiners._types import Aggregator
from samo_jax._combiners.gradients._double_sampling import double_sampling
from samo_jax._gramian import combine
from samo_jax._named import named
from samo_jax._tasks import per_task, present_tasks, uniform_weights
from samo_jax._tree import zero_unless


@named
@by_name("preference")
def sdmgrad(
    lam: float = 0.3,
    learning_rate: float = 10.0,
    momentum: float = 0.5,
    steps: int = 20,
    *,
    preference: TaskValues | None = None,
) -> Aggregator:
    """SDMGrad: `d = J'(w + lam u) / (1 + lam)`, close to the preferred direction J'u.

    w approaches the minimiser over the simplex of `||J'w + lam J'u||^2` by `steps`
    projected gradient steps with momentum, from where the last update left it:

    `v <- momentum v + M (w + lam u)`, `w <- Proj_simplex(w - learning_rate v)`.

    `M = J1 J2' / m^2` is made of two independent batches, which makes the steps
    unbiased. Pass `sample_loss_fns=` to `update`: with one further batch, J1 and J2 are
    the two batches' gradients and J is their mean; with two, J1 and J2 are those of the
    further ones, and J is that of `loss_fn`, as in the paper.

    The scale is `m = mean_i sqrt(||J1_i|| ||J2_i||)`; the references take the mean of
    `sqrt(M_ii)`, the same for equal batches, but zero where noise makes all M_ii
    negative. The default step size is the references'; it is large: w mostly jumps
    between vertices. With many tasks, or to converge, choose less than 1 / K.

    Args:
        lam: pull towards the preferred direction, non-negative. 0 is stochastic MGDA.
        learning_rate: step size of the weights, non-negative.
        momentum: share of the last step, in [0, 1].
        steps: number of steps an update, positive.
        preference: u, shape (K,) or by name, non-negative. None: 1/K each.

    Returns:
        An `Aggregator` that needs `sample_grads`, whose state is w, shape (K,), uniform
        at first. Where a gradient is not finite, w stays.

    Raises:
        ValueError: if an argument is out of its range; in `update`, if there are not
            one or two further samples.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> combiner = samo_jax.sdmgrad(lam=0.25, learning_rate=0.2)
        >>> first = jnp.array([[1.0, 0.0], [0.0, 3.0]])
        >>> state = combiner.init(first[0], 2)
        >>> _, weights, state = combiner.update(
        ...     first, state, losses=jnp.ones(2), sample_grads=[first]
        ... )
        >>> print(weights)
        [0.9... 0.1...]

    References:
        Xiao, Ban and Ji, `Direction-oriented Multi-objective Learning: Simple and
        Provable Stochastic Algorithms <https://arxiv.org/abs/2305.18409>`_, 2023
    """
    check_nonnegative("lam", lam, "0 is stochastic MGDA.")
    check_nonnegative("learning_rate", learning_rate, "0 keeps the weights uniform.")
    check_share("momentum", momentum, "0 switches it off.")
    check_count("steps", steps, "More bring the weights closer to their limit.")
    check_preference(preference)

    def init(params, num_tasks):
        del params
        return uniform_weights(num_tasks)

    def update(task_grads, state, *, present=None, sample_grads=(), **extra_args):
        del extra_args
        present = present_tasks(present, len(state))
        task_grads, products = double_sampling(
            task_grads, sample_grads, present, "sdmgrad"
        )
        uniform = uniform_weights(len(state), present)
        pull = per_task("preference", preference, len(state), uniform)
        pull = lam * zero_unless(present, pull)

        def descend(_, carry):
            weights, velocity = carry
            slope = jnp.matmul(products, weights + pull, precision="highest")
            velocity = momentum * velocity + slope
            return project_simplex(
                weights - learning_rate * velocity, present
            ), velocity

        old = among_present(state, present)
        new, _ = lax.fori_loop(0, steps, descend, (old, jnp.zeros_like(old)))
        finite = jnp.isfinite(new).all()
        new = jnp.where(finite, new, old)
        weights = (new + pull) / (1 + lam)
        state = jnp.where(finite, put_back(new, state, present), state)
        return combine(weights, task_grads), weights, state

    return Aggregator(init, update)
