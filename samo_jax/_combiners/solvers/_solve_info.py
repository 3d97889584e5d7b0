"""`SolveInfo`: diagnostics of a numerical solve."""

from typing import NamedTuple

import jax


class SolveInfo(NamedTuple):
    """Diagnostics of one solve.

    Attributes:
        residual: shape (), the method's own optimality residual (its docstring says
            which), for the Gramian as it was given.
        steps: shape (), int32, linear systems solved.
        converged: whether the given problem was solved to working precision, shape ().
            False where it has no finite solution (Pareto-stationary tasks) and the
            relative ridge decided, and where the Gramian is not finite.
        finite: whether the Gramian was finite, shape (). False: the weights are the
            fallback.
    """

    residual: jax.Array
    steps: jax.Array
    converged: jax.Array
    finite: jax.Array
