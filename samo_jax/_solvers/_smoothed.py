"""CR-MOGM: a moving average of any combiner's weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._hyperparameters import check_scalar, is_number
from samo_jax._solvers._arguments import present_tasks, uniform_weights
from samo_jax._solvers._base import Solver, solver_update
from samo_jax._tree import keep


class SmoothedState(NamedTuple):
    """State of `smoothed`.

    Attributes:
        average: shape (K,), each task's last smoothed weight (before the first: 1 / K).
        started: shape (K,), bool, whether each task has taken part in an update.
        solver_state: state of the wrapped solver.
    """

    average: jax.Array
    started: jax.Array
    solver_state: Any


def smoothed(solver: Solver, decay: float = 0.9) -> Solver:
    """A moving average of another solver's weights: `w <- decay w + (1 - decay) what`.

    A task's first update takes the solver's weight as it is, and updates without the
    task leave its average alone. Averaging removes the bias
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
        started = jnp.zeros((num_tasks,), bool)
        return SmoothedState(
            uniform_weights(num_tasks), started, solver.init(num_tasks)
        )

    def update(gramian, state, *, present=None, **extra_args):
        weights, solver_state = solver_update(solver)(
            gramian, state.solver_state, present=present, **extra_args
        )
        weights = weights.astype(state.average.dtype)
        present = present_tasks(present, len(weights))
        averaged = present & jnp.isfinite(weights).all()
        blend = weights + decay * (state.average - weights)
        average = jnp.where(state.started, blend, weights)
        average = jnp.where(averaged, average, state.average)
        return keep(present, average), SmoothedState(
            average, state.started | averaged, solver_state
        )

    return Solver(init, update, linear=solver.linear)
