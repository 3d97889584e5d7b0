"""MGDA: the min-norm point of the convex hull of the task gradients."""

from typing import Literal, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from samo_jax._solvers._base import SolveInfo, Solver, gramian_solver
from samo_jax._solvers._equilibrate import Equilibrated, Solution, solve_gramian
from samo_jax._solvers._nonnegative_qp import nonnegative_qp
from samo_jax._tree import safe_divide


@overload
def mgda_weights(
    gramian: ArrayLike, *, return_info: Literal[False] = False
) -> jax.Array: ...
@overload
def mgda_weights(
    gramian: ArrayLike, *, return_info: Literal[True]
) -> tuple[jax.Array, SolveInfo]: ...
def mgda_weights(
    gramian: ArrayLike, *, return_info: bool = False
) -> jax.Array | tuple[jax.Array, SolveInfo]:
    """Weights of the min-norm point, `min_w w'Gw` with `w >= 0`, `sum(w) = 1`.

    Solved exactly: with s >= 0 the solution of the QP `min s'Gs/2 - sum(s)`, the
    weights are `w = s / sum(s)`. Then `(Gw)_i >= w'Gw` for every task, with equality
    where w_i > 0: the direction `d = J'w` decreases no task slower than `||d||^2`. (The
    Frank-Wolfe and projected-gradient solvers in common use stop percents short of it.)

    Tasks with a zero gradient are left out (weight 0). Between duplicated gradients the
    split is arbitrary, the direction is not. At a Pareto-stationary point d is zero to
    working precision. All-zero and non-finite Gramians give uniform weights. `w` does
    not change when G is scaled.

    Args:
        gramian: G, shape (K, K), inner products of the task gradients.
        return_info: also return a `SolveInfo`, whose residual is the relative duality
            gap `(w'Gw - min_i (Gw)_i) / w'Gw` over the active tasks.

    Returns:
        w, shape (K,), or `(w, info)`.

    Raises:
        ValueError: if `gramian` is not square.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> print(samo_jax.mgda_weights(jnp.array([[18.0, -22.0], [-22.0, 38.0]])))
        [0.6 0.4]

    References:
        Desideri, `Multiple-gradient descent algorithm (MGDA) for multiobjective
        optimization <https://doi.org/10.1016/j.crma.2012.03.014>`_, 2012

        Sener and Koltun, `Multi-Task Learning as Multi-Objective Optimization
        <https://arxiv.org/abs/1810.04650>`_, 2018
    """
    weights, info = _solve(gramian)
    return (weights, info) if return_info else weights


@jax.jit
def _solve(gramian):
    return solve_gramian(gramian, _min_norm)


def _min_norm(problem: Equilibrated) -> Solution:
    # In y_i = 2^k_i s_i the linear term is 2^-k_i, here relative to its largest entry.
    matrix, exponents, active = problem
    smallest = jnp.min(jnp.where(active, exponents, jnp.iinfo(jnp.int32).max))
    units = jnp.ldexp(jnp.ones_like(matrix[0]), smallest - exponents)
    units = jnp.where(active, units, 0)

    solution = nonnegative_qp(matrix, units)
    scaled = units * solution.weights
    total = jnp.sum(scaled)
    uniform = active.astype(scaled.dtype)
    uniform /= jnp.maximum(jnp.sum(uniform), 1)
    weights = jnp.where(total > 0, scaled / total, uniform)

    # (Gw)_i in units of the smallest gradient's squared norm.
    descent = matrix @ safe_divide(weights, units) / jnp.where(active, units, 1)
    value = weights @ descent
    least = jnp.min(jnp.where(active, descent, jnp.inf))
    return solution._replace(
        weights=weights, residual=safe_divide(value - least, value)
    )


def mgda() -> Solver:
    """`mgda_weights` as a solver for `multitask` and `samo`.

    Returns:
        A `Solver`. On a non-finite Gramian it keeps its last weights;
        `SolverState.info` says so.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> solver = samo_jax.mgda()
        >>> gramian = jnp.diag(jnp.array([1.0, 3.0]))
        >>> weights, state = solver.update(gramian, solver.init(2))
        >>> print(weights, state.info.converged)
        [0.75 0.25] True
    """
    return gramian_solver(lambda gramian: mgda_weights(gramian, return_info=True))
