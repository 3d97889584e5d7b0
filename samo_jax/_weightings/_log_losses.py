"""Any solver on the logarithms of the losses."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._solvers import Solver
from samo_jax._solvers._base import uniform_weights
from samo_jax._tree import accumulator_dtype, keep_if
from samo_jax._weightings._base import usable_losses


class LogLossesState(NamedTuple):
    """State of `log_losses`.

    Attributes:
        last_weights: shape (K,), the last weights (before the first update: uniform).
        solver_state: state of the wrapped solver.
    """

    last_weights: jax.Array
    solver_state: Any


def log_losses(solver: Solver) -> Solver:
    """A solver on the gradients of `log L_i`, which do not depend on losses' scales.

    The gradients `g_i / L_i` have the Gramian `G_ij / (L_i L_j)`. Its weights v mean
    `d = sum_i v_i g_i / L_i`, that is weights `w_i = v_i / L_i` of the gradients
    themselves. With `mean()` this descends the geometric mean of the losses; SAMO's
    LOG_MGDA and LOG_CAGrad are `log_losses(mgda())` and the like. The losses must be
    those whose gradients make the Gramian: with `multitask`, don't override `losses`.

    Args:
        solver: any `Solver`. It gets the log losses as `losses`.

    Returns:
        A `Solver`. While a loss is not finite or not positive, or a weight would not be
        finite, it keeps its last weights (at first: uniform) and the solver's state.

    Raises:
        ValueError: if `solver` is not a `Solver`.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> solver = samo_jax.log_losses(samo_jax.mean())
        >>> losses = jnp.array([0.5, 4.0])
        >>> weights, _ = solver.update(jnp.eye(2), solver.init(2), losses=losses)
        >>> print(weights)
        [1.    0.125]

    References:
        Ban, Subramani and Ji, `SAMO: A Lightweight Sharpness-Aware Approach for
        Multi-Task Optimization with Joint Global-Local Perturbation
        <https://arxiv.org/abs/2507.07883>`_, 2025
    """
    if not isinstance(solver, Solver):
        raise ValueError(
            f"`solver` must be a samo_jax.Solver, got {solver!r}. Call the factory: "
            "`samo_jax.log_losses(samo_jax.mgda())`."
        )

    def init(num_tasks: int) -> LogLossesState:
        return LogLossesState(uniform_weights(num_tasks), solver.init(num_tasks))

    def update(gramian, state, *, losses, **extra_args):
        losses = jnp.asarray(losses, accumulator_dtype())
        usable = usable_losses(losses, positive=True)
        losses = jnp.where(usable, losses, 1)
        weights, solver_state = solver.update(
            gramian / losses[:, None] / losses[None, :],
            state.solver_state,
            losses=jnp.log(losses),
            **extra_args,
        )
        weights = weights / losses
        usable &= jnp.all(jnp.isfinite(weights))
        state = keep_if(usable, LogLossesState(weights, solver_state), state)
        return state.last_weights, state

    return Solver(init, update, linear=solver.linear)
