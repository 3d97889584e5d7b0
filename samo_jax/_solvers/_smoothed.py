"""CR-MOGM: a moving average of any combiner's weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._hyperparameters import check_scalar, is_number
from samo_jax._solvers._base import Solver, uniform_weights


class SmoothedState(NamedTuple):
    """State of `smoothed`.

    Attributes:
        average: shape (K,), the last smoothed weights (uniform before the first).
        started: shape (), bool, whether there was an update.
        solver_state: state of the wrapped solver.
    """

    average: jax.Array
    started: jax.Array
    solver_state: Any


def smoothed(solver: Solver, decay: float = 0.9) -> Solver:
    """A moving average of another solver's weights: `w <- decay w + (1 - decay) what`.

    The first update takes the solver's weights as they are. Averaging removes the bias
    that combiners have with stochastic gradients (CR-MOGM).

    Args:
        solver: the `Solver` whose weights what are averaged.
        decay: share of the old weights, in [0, 1). 0: no smoothing.

    Returns:
        A `Solver`. Where `solver` gives non-finite weights the average stays.

    Raises:
        ValueError: if `solver` is not a `Solver` or `decay` is not in [0, 1).

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> solver = samo_jax.smoothed(samo_jax.mgda(), decay=0.5)
        >>> state = solver.init(2)
        >>> _, state = solver.update(jnp.diag(jnp.array([1.0, 3.0])), state)
        >>> weights, state = solver.update(jnp.eye(2), state)
        >>> print(weights)
        [0.625 0.375]

    References:
        Zhou, Zhang, Jiang, Zhong, Gu and Zhu, `On the Convergence of Stochastic
        Multi-Objective Gradient Manipulation and Beyond
        <https://openreview.net/forum?id=ScwfQ7hdwyP>`_, 2022
    """
    if not isinstance(solver, Solver):
        raise ValueError(
            f"`solver` must be a samo_jax.Solver, got {solver!r}. Call the factory: "
            "`samo_jax.mgda()`, not `samo_jax.mgda`."
        )
    check_scalar("decay", decay, "0 keeps no history.")
    if is_number(decay) and not 0 <= decay < 1:
        raise ValueError(f"`decay` must be in [0, 1), got {decay}. 0 keeps no history.")

    def init(num_tasks: int) -> SmoothedState:
        return SmoothedState(
            uniform_weights(num_tasks), jnp.zeros((), bool), solver.init(num_tasks)
        )

    def update(gramian, state, **extra_args):
        weights, solver_state = solver.update(gramian, state.solver_state, **extra_args)
        weights = weights.astype(state.average.dtype)
        finite = jnp.isfinite(weights).all()
        blend = weights + decay * (state.average - weights)
        average = jnp.where(state.started, blend, weights)
        average = jnp.where(finite, average, state.average)
        return average, SmoothedState(average, state.started | finite, solver_state)

    return Solver(init, update, linear=solver.linear)
