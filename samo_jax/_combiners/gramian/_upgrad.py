"""`upgrad`: every task's gradient, projected onto the dual cone, summed."""

from typing import Literal, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from samo_jax._checks import TaskValues, Vector, check_preference
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._task_vectors import preference_vector
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.gramian._gramian_weighting import gramian_weighting
from samo_jax._combiners.solvers._dual_cone import project
from samo_jax._combiners.solvers._equilibrate import (
    check_gramian,
    in_order,
    solve_gramian,
)
from samo_jax._combiners.solvers._solve_info import SolveInfo
from samo_jax._named import named


@overload
def upgrad_weights(
    gramian: ArrayLike,
    preference: Vector | None = None,
    *,
    present: ArrayLike | None = None,
    return_info: Literal[False] = False,
) -> jax.Array: ...
@overload
def upgrad_weights(
    gramian: ArrayLike,
    preference: Vector | None = None,
    *,
    present: ArrayLike | None = None,
    return_info: Literal[True],
) -> tuple[jax.Array, SolveInfo]: ...
def upgrad_weights(
    gramian: ArrayLike,
    preference: Vector | None = None,
    *,
    present: ArrayLike | None = None,
    return_info: bool = False,
) -> jax.Array | tuple[jax.Array, SolveInfo]:
    """Weights of the sum of the task gradients' projections onto their dual cone.

    `w = sum_i argmin v'Gv` over `v >= u_i e_i`: each weighted gradient `u_i g_i` is
    replaced by the closest direction with which no task conflicts. So is their sum,
    `(Gw)_i >= 0`, and it is linear in the scale of each gradient.

    Solved exactly, all K projections at once. Tasks with a zero gradient are left out
    (weight 0). All-zero and non-finite Gramians give uniform weights. `w` does not
    change when G is scaled, and is proportional to u.

    Args:
        gramian: G, shape (K, K), inner products of the task gradients.
        preference: u, shape (K,), non-negative. None: 1/K each.
        present: shape (K,), bool, the tasks that take part; others get the weight 0.
            None: all.
        return_info: also return a `SolveInfo`, whose residual is the violation of the
            QP's optimality conditions, relative to its largest linear term.

    Returns:
        w, shape (K,), or `(w, info)`.

    Raises:
        ValueError: if `gramian` is not square or `preference` is not K non-negative
            numbers.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> gramian = jnp.array([[18.0, -22.0], [-22.0, 38.0]])
        >>> print(samo_jax.upgrad_weights(gramian))
        [1.11... 0.78...]

    References:
        Quinton and Rey, `Jacobian Descent for Multi-Objective Optimization
        <https://arxiv.org/abs/2406.16232>`_, 2024
    """
    check_preference(preference)
    weights, info = _solve(gramian, preference, present)
    return (weights, info) if return_info else weights


@jax.jit
def _solve(gramian, preference, present):
    gramian = check_gramian(gramian)
    u = preference_vector(preference, len(gramian), present)
    solve = in_order(lambda problem, u: project(problem, jnp.diag(u)))
    return solve_gramian(gramian, solve, u, present=present)


@named
@by_name("preference")
def upgrad(preference: TaskValues | None = None) -> Weighting:
    """`upgrad_weights` as a weighting for `multitask` and `samo`.

    Args:
        preference: u, shape (K,) or by name, non-negative. None: 1/K each.

    Returns:
        A `Weighting`. On a non-finite Gramian it keeps its last weights;
        `SolverState.info` says so.

    Raises:
        ValueError: if `preference` is not a vector of finite non-negative numbers.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.upgrad()
        >>> weights, _ = weighting.update(jnp.eye(2), weighting.init(2))
        >>> print(weights)
        [0.5 0.5]
    """
    check_preference(preference)
    return gramian_weighting(
        lambda gramian, present: _solve(gramian, preference, present)
    )
