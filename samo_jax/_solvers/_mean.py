"""Linear scalarisation: equal weights."""

from samo_jax._solvers._arguments import uniform_weights
from samo_jax._solvers._base import Solver


def mean() -> Solver:
    """Equal weights, `w_i = 1/K`: the direction is the gradient of the mean loss.

    Returns:
        A stateless `Solver`.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> solver = samo_jax.mean()
        >>> weights, _ = solver.update(jnp.eye(4), solver.init(4))
        >>> print(weights)
        [0.25 0.25 0.25 0.25]
    """

    def update(gramian, state, *, present=None, **extra_args):
        del extra_args
        return uniform_weights(gramian.shape[0], present), state

    return Solver(lambda _num_tasks: (), update, linear=True)
