"""`total`: linear scalarisation, the sum of the losses."""

from samo_jax._combiners._types import Weighting
from samo_jax._named import named
from samo_jax._tasks import present_tasks
from samo_jax._tree import accumulator_dtype


@named
def total() -> Weighting:
    """Weights of one, `w_i = 1`: the direction is the gradient of the sum of losses.

    K times `mean()`.

    Returns:
        A stateless `Weighting`.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.total()
        >>> weights, _ = weighting.update(jnp.eye(3), weighting.init(3))
        >>> print(weights)
        [1. 1. 1.]
    """

    def update(gramian, state, *, present=None, **extra_args):
        del extra_args
        present = present_tasks(present, gramian.shape[0])
        return present.astype(accumulator_dtype()), state

    return Weighting(lambda _num_tasks: (), update, needs_gramian=False)
