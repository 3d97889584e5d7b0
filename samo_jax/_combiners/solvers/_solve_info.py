"""`SolveInfo`: how a numerical solve went."""

from typing import NamedTuple

import jax


class SolveInfo(NamedTuple):
    """How a solve went.

    Attributes:
        residual: shape (), the method's own optimality residual (its docstring says
            which), for the Gramian as it was given.
        steps: shape (), int32, linear systems solved.
        converged: shape (), bool, the given problem was solved to working precision.
            False where it has no finite solution (Pareto-stationary tasks) and the
            relative ridge decided, and where the Gramian is not finite.
        finite: shape (), bool, the Gramian was finite. False: the weights are the
            fallback.
    """

    residual: jax.Array
    steps: jax.Array
    converged: jax.Array
    finite: jax.Array
