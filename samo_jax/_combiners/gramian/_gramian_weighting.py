"""`gramian_weighting`: weightings of the Gramian, and of positive losses."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._combiners._types import Weighting
from samo_jax._combiners.solvers._solve_info import SolveInfo
from samo_jax._tasks import present_tasks, uniform_weights
from samo_jax._tree import accumulator_dtype, zero_unless


class SolverState(NamedTuple):
    """State of the weightings of a Gramian.

    Attributes:
        last_weights: shape (K,), the last weights of a finite Gramian (first: uniform).
        info: `SolveInfo` of the last update.
    """

    last_weights: jax.Array
    info: SolveInfo


def init_solver_state(num_tasks: int) -> SolverState:
    """The first state: uniform weights, and nothing wrong."""
    info = SolveInfo(
        residual=jnp.zeros((), accumulator_dtype()),
        steps=jnp.zeros((), jnp.int32),
        converged=jnp.ones((), bool),
        finite=jnp.ones((), bool),
    )
    return SolverState(uniform_weights(num_tasks), info)


def or_last_weights(
    solved: tuple[jax.Array, SolveInfo],
    state: SolverState,
    present: jax.Array | None = None,
) -> tuple[jax.Array, SolverState]:
    """The result of `update`: the last good weights where the Gramian is not finite.

    Absent tasks get the weight 0, and their last weights wait.
    """
    weights, info = solved
    present = present_tasks(present, len(weights))
    last = jnp.where(info.finite & present, weights, state.last_weights)
    return zero_unless(present, last), SolverState(last, info)


def gramian_weighting(
    weights_fn: Callable[..., tuple[jax.Array, SolveInfo]], degree: float = 1.0
) -> Weighting:
    """A `Weighting` of `weights_fn(gramian, present)`, a function of these alone."""

    def update(gramian, state, *, present=None, **extra_args):
        del extra_args
        return or_last_weights(weights_fn(gramian, present), state, present)

    return Weighting(init_solver_state, update, degree=degree)


class LossSolverState(NamedTuple):
    """State of the Gramian weightings that need positive losses.

    Attributes:
        last_weights: shape (K,), the last weights of a finite Gramian and usable losses
            (first: uniform).
        info: `SolveInfo` of the last update.
        unusable: shape (K,), int32, number of updates in which a loss of each task was
            not positive and finite. Where it grows, the weights stand still.
    """

    last_weights: jax.Array
    info: SolveInfo
    unusable: jax.Array


def unusable_losses(
    gramian: jax.Array, losses: jax.Array, present: jax.Array | None
) -> jax.Array:
    """Whether the loss of a present task with a gradient is not positive and finite."""
    needed = present_tasks(present, len(losses)) & (jnp.diagonal(gramian) != 0)
    return needed & ~((losses > 0) & jnp.isfinite(losses))


def gramian_and_loss_weighting(
    solve: Callable[..., tuple[jax.Array, SolveInfo, jax.Array]],
) -> Weighting:
    """A `Weighting` of a solve that needs positive losses.

    It is made of `solve(gramian, losses, present) -> (weights, info, unusable)`.
    """

    def init(num_tasks):
        unusable = jnp.zeros((num_tasks,), jnp.int32)
        return LossSolverState(*init_solver_state(num_tasks), unusable)

    def update(gramian, state, *, losses=None, present=None, **extra_args):
        del extra_args
        weights, info, unusable = solve(gramian, losses, present)
        weights, kept = or_last_weights((weights, info), state, present)
        unusable = state.unusable + unusable.astype(jnp.int32)
        return weights, LossSolverState(*kept, unusable)

    return Weighting(init, update)
