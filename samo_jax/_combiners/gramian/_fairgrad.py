"""`fairgrad`: alpha-fair weights of the tasks."""

from functools import partial
from typing import Literal, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from samo_jax._checks import (
    TaskValues,
    Vector,
    check_preference,
    check_scalar,
    is_number,
)
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._task_vectors import relative_preference
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.gramian._gramian_weighting import gramian_weighting
from samo_jax._combiners.solvers._alpha_fair import alpha_fair
from samo_jax._combiners.solvers._equilibrate import (
    Equilibrated,
    Solution,
    check_gramian,
    in_order,
    solve_gramian,
)
from samo_jax._combiners.solvers._solve_info import SolveInfo
from samo_jax._named import named
from samo_jax._tasks import present_tasks
from samo_jax._tree import safe_divide, zero_unless


@overload
def fairgrad_weights(
    gramian: ArrayLike,
    alpha: ArrayLike = 1.0,
    *,
    preference: Vector | None = None,
    present: ArrayLike | None = None,
    return_info: Literal[False] = False,
) -> jax.Array: ...
@overload
def fairgrad_weights(
    gramian: ArrayLike,
    alpha: ArrayLike = 1.0,
    *,
    preference: Vector | None = None,
    present: ArrayLike | None = None,
    return_info: Literal[True],
) -> tuple[jax.Array, SolveInfo]: ...
def fairgrad_weights(
    gramian: ArrayLike,
    alpha: ArrayLike = 1.0,
    *,
    preference: Vector | None = None,
    present: ArrayLike | None = None,
    return_info: bool = False,
) -> jax.Array | tuple[jax.Array, SolveInfo]:
    """Weights of the alpha-fair direction: `(Gw)_i = w_i^(-1/alpha)`, w > 0.

    They maximise `sum_i u_i^(1-alpha) / (1-alpha)` (log for alpha = 1) of the tasks'
    descent rates `u_i = <g_i, d>`, and are unique. alpha = 1 is proportional fairness
    (Nash-MTL's bargaining point), alpha = 2 minimum potential delay, large alpha
    approaches max-min. The weights are not normalised: scaling all gradients by s
    scales w by `s^(-2 alpha / (1 + alpha))` and the direction by `s^((1-alpha) /
    (1+alpha))`.

    Tasks with a zero gradient are left out (weight 0). All-zero and non-finite Gramians
    give uniform weights. For alpha from 0.1 to 30 and gradient norms spread over a
    factor of 1e4, float32 solves the equation to its rounding; for alpha >= 0.5 the
    weights are then the exact ones to a few units in the last place.

    At Pareto-stationary points the equation has no solution, and near them none that
    the precision can tell. `converged` is then False, and the weights are those of a
    relative ridge, raised until no task conflicts with the direction (which is zero
    where all gradients cancel).

    With a preference p the sum is that of `p_i u_i^(1-alpha) / (1-alpha)`, and the
    equation `(Gw)_i = (p_i / w_i)^(1/alpha)`. For orthogonal gradients the rates then
    are proportional to `p_i^(1 / (1 + alpha))`: the larger alpha, the less p matters.

    Args:
        gramian: G, shape (K, K), inner products of the task gradients.
        alpha: fairness exponent, positive. Below 0.5 the rates of conflicting tasks
            are so small that float32 can only tell that they are near zero.
        preference: p, shape (K,), positive; its scale does not matter (it is brought to
            a mean of 1 over the tasks that take part). None: uniform.
        present: shape (K,), bool, the tasks that take part; others get the weight 0.
            None: all.
        return_info: also return a `SolveInfo`, whose residual is the largest
            `|(Gw)_i - (p_i / w_i)^(1/alpha)|`, relative to the terms `sum_j |G_ij| w_j`
            of its difference.

    Returns:
        w, shape (K,), or `(w, info)`.

    Raises:
        ValueError: if `gramian` is not square, `alpha` is not positive, or `preference`
            is not K positive numbers.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> print(samo_jax.fairgrad_weights(jnp.array([[18.0, -22.0], [-22.0, 38.0]])))
        [0.59... 0.40...]

    References:
        Ban and Ji, `Fair Resource Allocation in Multi-Task Learning
        <https://arxiv.org/abs/2402.15638>`_, 2024
    """
    _check_alpha(alpha)
    check_preference(preference, positive=True)
    weights, info = _solve(gramian, alpha, preference, present)
    return (weights, info) if return_info else weights


def _check_alpha(alpha):
    check_scalar("alpha", alpha, "1 is proportional fairness.")
    if is_number(alpha) and not 0 < alpha < float("inf"):
        raise ValueError(
            f"`alpha` must be positive and finite, got {alpha}. For alpha = 0 (linear "
            "scalarisation) use `samo_jax.mean()`, for infinity `samo_jax.mgda()`."
        )


@jax.jit
def _solve(gramian, alpha, preference, present):
    gramian = check_gramian(gramian)
    preference = relative_preference(preference, len(gramian))
    # A traced preference may be zero.
    present = present_tasks(present, len(preference)) & (preference > 0)
    solve = in_order(partial(_fair, alpha=alpha))
    return solve_gramian(gramian, solve, preference, present=present)


def _fair(problem: Equilibrated, preference, alpha) -> Solution:
    # w_i = 2^-(k_i + q) y_i gives C y = b y^-p, b_i = 2^((p-1) k_i + (p+1) q) c_i^p, c
    # the preference of mean 1; the integer q keeps b near one on average, and the
    # substitution is exact.
    matrix, exponents, active, _ = problem
    p = 1 / jnp.asarray(alpha, matrix.dtype)
    k = exponents.astype(matrix.dtype)
    count = jnp.maximum(jnp.sum(active), 1).astype(matrix.dtype)
    average = jnp.sum(k) / count
    q = jnp.round((1 - p) / (1 + p) * average)
    preferred = preference * safe_divide(
        count, jnp.sum(zero_unless(active, preference))
    )
    scale = jnp.exp2(((p - 1) * k + (p + 1) * q) / jnp.maximum(p, 1))
    scale *= preferred ** jnp.minimum(p, 1)
    solution = alpha_fair(matrix, jnp.where(active, scale, 1), p)
    weights = jnp.ldexp(solution.weights, -(exponents + q.astype(jnp.int32)))
    return solution._replace(weights=weights)


@named
@by_name("preference")
def fairgrad(alpha: float = 1.0, *, preference: TaskValues | None = None) -> Weighting:
    """`fairgrad_weights` as a weighting for `multitask` and `samo`.

    Args:
        alpha: fairness exponent, positive. The scripts of FairGrad and SAMO use 2.0.
        preference: p, shape (K,) or by name, positive, of any scale. None: uniform.

    Returns:
        A `Weighting`. On a non-finite Gramian it keeps its last weights;
        `SolverState.info` says so.

    Raises:
        ValueError: if `alpha` or `preference` is not positive.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.fairgrad(alpha=1.0)
        >>> gramian = jnp.diag(jnp.array([1.0, 4.0]))
        >>> weights, _ = weighting.update(gramian, weighting.init(2))
        >>> print(weights)
        [1.  0.5]
    """
    _check_alpha(alpha)
    check_preference(preference, positive=True)
    return gramian_weighting(
        lambda gramian, present: _solve(gramian, alpha, preference, present),
        degree=(1 - alpha) / (1 + alpha),
    )
