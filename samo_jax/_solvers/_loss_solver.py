"""Solvers of the Gramian and of positive losses."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._solvers._arguments import present_tasks
from samo_jax._solvers._base import SolveInfo, Solver, init_solver, keep_last


class LossSolverState(NamedTuple):
    """State of the Gramian solvers that need positive losses.

    Attributes:
        last_weights: shape (K,), the last weights of a finite Gramian and usable losses
            (first: uniform).
        info: `SolveInfo` of the last update.
        unusable: shape (K,), int32, how many updates had a loss of each task that was
            not positive and finite. Where it grows, the weights stand still.
    """

    last_weights: jax.Array
    info: SolveInfo
    unusable: jax.Array


def unusable_losses(
    gramian: jax.Array, losses: jax.Array, present: jax.Array | None
) -> jax.Array:
    """Which losses, of present tasks with a gradient, are not positive and finite."""
    needed = present_tasks(present, len(losses)) & (jnp.diagonal(gramian) != 0)
    return needed & ~((losses > 0) & jnp.isfinite(losses))


def loss_solver(
    solve: Callable[..., tuple[jax.Array, SolveInfo, jax.Array]],
) -> Solver:
    """A `Solver` of `solve(gramian, losses, present) -> (weights, info, unusable)`."""

    def init(num_tasks):
        unusable = jnp.zeros((num_tasks,), jnp.int32)
        return LossSolverState(*init_solver(num_tasks), unusable)

    def update(gramian, state, *, losses=None, present=None, **extra_args):
        del extra_args
        weights, info, unusable = solve(gramian, losses, present)
        weights, kept = keep_last((weights, info), state, present)
        unusable = state.unusable + unusable.astype(jnp.int32)
        return weights, LossSolverState(*kept, unusable)

    return Solver(init, update)
