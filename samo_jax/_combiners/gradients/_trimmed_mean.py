"""`trimmed_mean`: a robust average of the gradients, coordinate by coordinate."""

import jax
import jax.numpy as jnp

from samo_jax._checks import check_count
from samo_jax._combiners._types import Aggregator
from samo_jax._gramian import combine
from samo_jax._named import named
from samo_jax._tasks import count_tasks, present_tasks, uniform_weights
from samo_jax._tree import accumulator_dtype, cast_like


@named
def trimmed_mean(trim: int) -> Aggregator:
    """Trimmed mean: in each coordinate, without the `trim` largest and smallest.

    `d_j = mean of the K - 2 trim middle values among g_1j, ..., g_Kj`. `trim=0` is the
    mean gradient, the largest possible `trim` the median. Where tasks are absent and
    too few are left for `trim`, it is the median of these.

    Args:
        trim: values dropped at each end, at most (K - 1) / 2.

    Returns:
        A stateless `Aggregator`, whose weights are uniform.

    Raises:
        ValueError: if `trim` is not a non-negative int or, in `init` and `update`,
            leaves none of the K tasks.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> combiner = samo_jax.trimmed_mean(1)
        >>> task_grads = jnp.array([[1.0, 2.0], [900.0, 4.0], [3.0, -900.0]])
        >>> state = combiner.init(task_grads[0], 3)
        >>> direction, _, _ = combiner.update(task_grads, state, losses=jnp.ones(3))
        >>> print(direction)
        [3. 2.]

    References:
        Yin et al., `Byzantine-Robust Distributed Learning: Towards Optimal Statistical
        Rates <https://arxiv.org/abs/1803.01498>`_, 2018
    """
    check_count("trim", trim, "0 is the mean gradient.", least=0)

    def check(num_tasks):
        if num_tasks < 2 * trim + 1:
            raise ValueError(
                f"`trim` must leave a task, got {trim} at each end of {num_tasks} "
                f"tasks. Choose at most {(num_tasks - 1) // 2}."
            )

    def init(params, num_tasks):
        del params
        check(num_tasks)
        return ()

    def update(task_grads, state, *, losses=None, present=None, **extra_args):
        del extra_args
        num_tasks = count_tasks(losses, present, task_grads)
        check(num_tasks)
        present = present_tasks(present, num_tasks)
        count = jnp.sum(present)
        cut = jnp.clip((count - 1) // 2, 0, trim)
        places = jnp.arange(num_tasks)
        shares = uniform_weights(num_tasks, (places >= cut) & (places < count - cut))

        def middle(leaf):
            absent = jnp.expand_dims(~present, tuple(range(1, leaf.ndim)))
            ordered = jnp.where(absent, jnp.inf, leaf.astype(accumulator_dtype()))
            ordered = jnp.sort(ordered, axis=0)
            return combine(shares, jnp.where(jnp.isinf(ordered), 0, ordered))

        direction = cast_like(jax.tree.map(middle, task_grads), task_grads)
        return direction, uniform_weights(num_tasks, present), state

    return Aggregator(init, update)
