"""Linear scalarisation: the sum of the losses."""

from samo_jax._solvers._arguments import present_tasks
from samo_jax._solvers._base import Solver
from samo_jax._tree import accumulator_dtype


def total() -> Solver:
    """Weights of one, `w_i = 1`: the direction is the gradient of the sum of losses.

    K times `mean()`.

    Returns:
        A stateless `Solver`.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> solver = samo_jax.total()
        >>> weights, _ = solver.update(jnp.eye(3), solver.init(3))
        >>> print(weights)
        [1. 1. 1.]
    """

    def update(gramian, state, *, present=None, **extra_args):
        del extra_args
        present = present_tasks(present, gramian.shape[0])
        return present.astype(accumulator_dtype()), state

    return Solver(lambda _num_tasks: (), update, linear=True)
