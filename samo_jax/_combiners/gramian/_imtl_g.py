"""`imtl_g`: impartial directions, with equal projections on all tasks' gradients."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from samo_jax._combiners._types import Weighting
from samo_jax._combiners.gramian._gramian_weighting import gramian_weighting
from samo_jax._combiners.solvers._correlation import (
    direct,
    judge,
    prescribed_cosines,
    rank_tolerance,
    relative_norms,
)
from samo_jax._combiners.solvers._equilibrate import (
    Equilibrated,
    Solution,
    in_order,
    solve_gramian,
)
from samo_jax._named import named


def imtl_g_weights(
    gramian: ArrayLike, *, present: ArrayLike | None = None
) -> jax.Array:
    """Weights of the direction with equal projections: `(Gw)_i = c n_i`, `sum(w) = 1`.

    With `n_i = ||g_i||` and C the tasks' correlation matrix, `y = C^+ 1`, `v_i = y_i /
    n_i`, `w = v / sum(v)`, `c = 1 / sum(v)`.

    Weights may be negative. For more than two tasks so may be sum(v), and then the
    direction *ascends* every task, as in the reference implementations; the residual
    of `imtl_g`'s info is 2 there. Where gradients are linearly dependent to working
    precision, the projections are equal in the least-squares sense only. Where the
    equations say nothing (`C 1 = 0`, or sum(v) cancels to rounding), `w_i` is
    proportional to `1 / n_i`: opposite gradients then give a zero direction.

    Tasks with a zero gradient are left out (weight 0). All-zero and non-finite Gramians
    give uniform weights. `w` does not change when G is scaled.

    Args:
        gramian: G, shape (K, K), inner products of the task gradients.
        present: shape (K,), bool, the tasks that take part; others get the weight 0.
            None: all.

    Returns:
        w, shape (K,).

    Raises:
        ValueError: if `gramian` is not square.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> print(samo_jax.imtl_g_weights(jnp.diag(jnp.array([1.0, 9.0]))))
        [0.75 0.25]

    References:
        Liu, Li, Kuang, Xue, Chen, Yang, Liao and Zhang, `Towards Impartial Multi-task
        Learning <https://openreview.net/forum?id=IMPnRXEWpvr>`_, 2021
    """
    return _solve(gramian, present)[0]


@jax.jit
def _solve(gramian, present):
    weights, info = solve_gramian(
        gramian, in_order(_equal_projections), present=present
    )
    return weights, judge(info)


def _equal_projections(problem: Equilibrated) -> Solution:
    active = problem.active
    ones = active.astype(problem.matrix.dtype)
    norms = relative_norms(problem)
    y, products, solvable = prescribed_cosines(problem, ones)

    v = y / norms
    total = jnp.sum(v)
    solvable &= jnp.abs(total) > rank_tolerance(problem.matrix) * jnp.sum(jnp.abs(v))
    v = jnp.where(solvable, v, ones / norms)
    sign = jnp.sign(total)
    residual = jnp.max(jnp.where(active, jnp.abs(sign * products - 1), 0))
    return direct(v / jnp.where(active.any(), jnp.sum(v), 1), residual)


@named
def imtl_g() -> Weighting:
    """`imtl_g_weights` as a weighting for `multitask` and `samo`.

    Returns:
        A `Weighting`. On a non-finite Gramian it keeps its last weights;
        `SolverState.info` says so. Its residual is `max_i |(Gw)_i / (|c| n_i) - 1|`,
        hence 2 where the direction ascends; not converged means a residual that is not
        small.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.imtl_g()
        >>> weights, state = weighting.update(
        ...     jnp.diag(jnp.array([1.0, 9.0])), weighting.init(2)
        ... )
        >>> print(weights, state.info.converged)
        [0.75 0.25] True
    """
    return gramian_weighting(_solve)
