"""`mean`: linear scalarisation with equal weights."""

from samo_jax._combiners._types import Weighting
from samo_jax._named import named
from samo_jax._tasks import uniform_weights


@named
def mean() -> Weighting:
    """Equal weights, `w_i = 1/K`: the direction is the gradient of the mean loss.

    Returns:
        A stateless `Weighting`.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.mean()
        >>> weights, _ = weighting.update(jnp.eye(4), weighting.init(4))
        >>> print(weights)
        [0.25 0.25 0.25 0.25]
    """

    def update(gramian, state, *, present=None, **extra_args):
        del extra_args
        return uniform_weights(gramian.shape[0], present), state

    return Weighting(lambda _num_tasks: (), update, needs_gramian=False)
