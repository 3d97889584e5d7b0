"""`constant`: linear scalarisation with fixed weights."""

import jax
import numpy as np

from samo_jax._checks import TaskValues, as_numbers
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._types import Weighting
from samo_jax._named import named
from samo_jax._tasks import per_task, present_tasks
from samo_jax._tree import zero_unless


@named
@by_name("weights")
def constant(weights: TaskValues) -> Weighting:
    """Fixed weights: the direction is the gradient of `sum_i w_i l_i`.

    Args:
        weights: w, finite, shape (K,) in the order of the loss pytree's leaves, or by
            name, `{"seg": 0.7, "depth": 0.3}`. Used as given, also those of the present
            tasks where others are absent: make them sum to one for the scale of a
            mean.

    Returns:
        A stateless `Weighting`.

    Raises:
        ValueError: if `weights` is not a finite vector; in `init` and `update`, if its
            length is not K, or its names are not those of the tasks.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.constant(jnp.array([0.25, 0.75]))
        >>> weights, _ = weighting.update(jnp.eye(2), weighting.init(2))
        >>> print(weights)
        [0.25 0.75]
    """
    if not isinstance(weights, jax.core.Tracer):
        values = as_numbers("weights", weights)
        if values.ndim != 1 or not np.all(np.isfinite(values)):
            raise ValueError(
                f"`weights` must be a vector of K finite numbers, got {weights!r}. "
                "`samo_jax.mean()` weights all tasks the same."
            )

    def init(num_tasks):
        per_task("weights", weights, num_tasks, 0)
        return ()

    def update(gramian, state, *, present=None, **extra_args):
        del extra_args
        vector = per_task("weights", weights, len(gramian), 0)
        return zero_unless(present_tasks(present, len(gramian)), vector), state

    return Weighting(init, update, needs_gramian=False)
