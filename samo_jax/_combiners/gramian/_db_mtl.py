"""`db_mtl`: log losses, and gradients brought to one norm."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from samo_jax._checks import Vector
from samo_jax._combiners._task_vectors import required_losses
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.gramian._gramian_weighting import (
    gramian_and_loss_weighting,
    unusable_losses,
)
from samo_jax._combiners.solvers._correlation import direct, relative_norms
from samo_jax._combiners.solvers._equilibrate import (
    Equilibrated,
    Solution,
    check_gramian,
    solve_gramian,
)
from samo_jax._named import named
from samo_jax._tree import zero_unless


def db_mtl_weights(
    gramian: ArrayLike, losses: Vector, *, present: ArrayLike | None = None
) -> jax.Array:
    """Weights of dual-balancing: `w_i = max_j(||g_j|| / l_j) / (K ||g_i||)`.

    The gradients g_i / l_i of the log-losses are all brought to the largest norm among
    them; the direction is their mean (the reference takes the sum, K times this). The
    reference's moving average of the gradients is left out.

    Tasks with a zero gradient are left out (weight 0). A loss that is not positive and
    finite, of a task with a gradient, counts as a non-finite Gramian; these and
    all-zero ones give uniform weights. `w` does not change when G is scaled.

    Args:
        gramian: G, shape (K, K), inner products of the task gradients.
        losses: l, shape (K,), positive.
        present: shape (K,), bool, the tasks that take part; others get the weight 0.
            None: all.

    Returns:
        w, shape (K,).

    Raises:
        ValueError: if `gramian` is not square, or `losses` is None or not of shape
            (K,).

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> gramian = jnp.diag(jnp.array([1.0, 4.0]))
        >>> print(samo_jax.db_mtl_weights(gramian, jnp.array([1.0, 0.5])))
        [2. 1.]

    References:
        Lin, Jiang, Ye, Zhang, Chen, Chen, Liu and Kwok, `Dual-Balancing for Multi-Task
        Learning <https://arxiv.org/abs/2308.12029>`_, 2023
    """
    return _solve(gramian, losses, present)[0]


@jax.jit
def _solve(gramian, losses, present):
    gramian = check_gramian(gramian)
    losses = required_losses(losses, "db_mtl()", len(gramian))
    unusable = unusable_losses(gramian, losses, present)
    gramian = jnp.where(unusable.any(), jnp.nan, gramian)
    return *solve_gramian(gramian, _balance, losses, present=present), unusable


def _balance(problem: Equilibrated, losses: jax.Array) -> Solution:
    norms = relative_norms(problem)
    speeds = norms / jnp.where(problem.active, losses, 1)
    largest = jnp.max(zero_unless(problem.active, speeds))
    return direct(largest / norms / problem.num_present)


@named
def db_mtl() -> Weighting:
    """`db_mtl_weights` as a weighting for `multitask` and `samo`.

    Returns:
        A `Weighting` that needs `losses`. On a non-finite Gramian or losses that are
        not positive it keeps its last weights, uniform ones if it never had others. Its
        state says so: `info.finite` is False, and `unusable` counts the updates with
        such a loss, task by task.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.db_mtl()
        >>> weights, _ = weighting.update(
        ...     jnp.diag(jnp.array([1.0, 4.0])), weighting.init(2), losses=jnp.ones(2)
        ... )
        >>> print(weights)
        [1.  0.5]
    """
    return gramian_and_loss_weighting(_solve)
