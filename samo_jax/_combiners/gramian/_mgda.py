"""`mgda`: the min-norm point of the convex hull of the task gradients."""

from functools import partial
from typing import Literal, TypeAlias, get_args, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from samo_jax._checks import TaskValues, Vector, check_choice, check_preference
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._task_vectors import relative_preference, required_losses
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.gramian._gramian_weighting import (
    gramian_and_loss_weighting,
    gramian_weighting,
    unusable_losses,
)
from samo_jax._combiners.solvers._equilibrate import (
    Equilibrated,
    Solution,
    check_gramian,
    in_order,
    solve_gramian,
)
from samo_jax._combiners.solvers._nonnegative_qp import nonnegative_qp
from samo_jax._combiners.solvers._solve_info import SolveInfo
from samo_jax._named import named
from samo_jax._tree import safe_divide

Normalization: TypeAlias = Literal["none", "l2", "loss", "loss+"]
ApplyTo: TypeAlias = Literal["normalized", "raw"]


@overload
def mgda_weights(
    gramian: ArrayLike,
    losses: Vector | None = None,
    *,
    normalization: Normalization = "none",
    apply_to: ApplyTo = "normalized",
    preference: Vector | None = None,
    present: ArrayLike | None = None,
    return_info: Literal[False] = False,
) -> jax.Array: ...
@overload
def mgda_weights(
    gramian: ArrayLike,
    losses: Vector | None = None,
    *,
    normalization: Normalization = "none",
    apply_to: ApplyTo = "normalized",
    preference: Vector | None = None,
    present: ArrayLike | None = None,
    return_info: Literal[True],
) -> tuple[jax.Array, SolveInfo]: ...
def mgda_weights(
    gramian: ArrayLike,
    losses: Vector | None = None,
    *,
    normalization: Normalization = "none",
    apply_to: ApplyTo = "normalized",
    preference: Vector | None = None,
    present: ArrayLike | None = None,
    return_info: bool = False,
) -> jax.Array | tuple[jax.Array, SolveInfo]:
    """Weights of the min-norm point, `min_w w'Gw` with `w >= 0`, `sum(w) = 1`.

    Solved exactly: with s >= 0 the solution of the QP `min s'Gs/2 - sum(s)`, the
    weights are `w = s / sum(s)`. Then `(Gw)_i >= w'Gw` for every task, with equality
    where w_i > 0: the direction `d = J'w` decreases no task slower than `||d||^2`. (The
    Frank-Wolfe and projected-gradient weightings in common use stop percents short of
    it.)

    With a normalization, the min-norm point is that of the gradients `g_i / c_i`, c_i
    being `||g_i||` ("l2"), l_i ("loss") or `l_i ||g_i||` ("loss+"); small gradients
    then do not dominate. Its weights v certify the direction `sum_i v_i g_i / c_i`: w_i
    is `v_i / c_i` over their sum (LibMTL does not divide by that sum). With
    `apply_to="raw"`, as in many implementations, w is v.

    With a preference p, the rates follow it: the min-norm point is that of `g_i / p_i`
    (times `1 / c_i`), and d maximises `min_i <g_i, d> / (p_i c_i)` over directions of
    one length. A task of preference 0 demands no more than not to be hurt.

    Tasks with a zero gradient are left out (weight 0). Between duplicated gradients the
    split is arbitrary, the direction is not. (With a normalization the same is true of
    parallel ones, up to the direction's length.) At a Pareto-stationary point d is zero
    to working precision. All-zero and non-finite Gramians, and losses used that are not
    positive and finite, give uniform weights. `w` does not change when G is scaled.

    Args:
        gramian: G, shape (K, K), inner products of the task gradients.
        losses: l, shape (K,), positive; needed for "loss" and "loss+".
        normalization: "none", "l2", "loss" or "loss+".
        apply_to: whether the weights were meant for the "normalized" or the "raw"
            gradients.
        preference: p, shape (K,), non-negative, of any scale. None: uniform.
        present: shape (K,), bool, the tasks that take part; others get the weight 0.
            None: all.
        return_info: also return a `SolveInfo`, whose residual is the relative duality
            gap `(v'Hv - min_i (Hv)_i) / v'Hv` over the active tasks, H the normalised
            Gramian.

    Returns:
        w, shape (K,), or `(w, info)`.

    Raises:
        ValueError: if `gramian` is not square, `normalization` or `apply_to` is none of
            the above, the losses needed are None or not of shape (K,), or `preference`
            is not K non-negative numbers.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> print(samo_jax.mgda_weights(jnp.array([[18.0, -22.0], [-22.0, 38.0]])))
        [0.6 0.4]
        >>> gramian = jnp.diag(jnp.array([1.0, 9.0]))
        >>> print(samo_jax.mgda_weights(gramian, normalization="l2"))
        [0.75 0.25]

    References:
        Desideri, `Multiple-gradient descent algorithm (MGDA) for multiobjective
        optimization <https://doi.org/10.1016/j.crma.2012.03.014>`_, 2012

        Sener and Koltun, `Multi-Task Learning as Multi-Objective Optimization
        <https://arxiv.org/abs/1810.04650>`_, 2018
    """
    _check(normalization, apply_to, preference)
    weights, info, _ = _solve(
        gramian,
        losses,
        present,
        preference,
        normalization=normalization,
        apply_to=apply_to,
    )
    return (weights, info) if return_info else weights


def _check(normalization, apply_to, preference):
    check_choice("normalization", normalization, get_args(Normalization))
    check_choice("apply_to", apply_to, get_args(ApplyTo))
    check_preference(preference)


@partial(jax.jit, static_argnames=("normalization", "apply_to"))
def _solve(gramian, losses, present, preference, *, normalization, apply_to):
    gramian = check_gramian(gramian)
    if normalization in ("loss", "loss+"):
        losses = required_losses(losses, f"mgda({normalization!r})", len(gramian))
    else:
        losses = jnp.ones_like(gramian[0])
    unusable = unusable_losses(gramian, losses, present)
    gramian = jnp.where(unusable.any(), jnp.nan, gramian)
    solve = partial(
        _min_norm, by_norm=normalization in ("l2", "loss+"), raw=apply_to == "raw"
    )
    demands = losses * relative_preference(preference, len(gramian))
    return *solve_gramian(gramian, in_order(solve), demands, present=present), unusable


def _min_norm(
    problem: Equilibrated, demands: jax.Array, by_norm: bool, raw: bool
) -> Solution:
    # With x_i = v_i / c_i the QP is `min x'Gx/2 - c'x`, here in y_i = 2^k_i x_i, with
    # its linear term 2^-k_i c_i in units in which the largest one is near one.
    matrix, exponents, active, _ = problem
    demands = jnp.where(active, demands, 0)
    demands = jnp.where(jnp.any(demands > 0), demands, active.astype(matrix.dtype))
    scales = safe_divide(demands, jnp.max(demands))
    smallest = jnp.min(jnp.where(active, exponents, jnp.iinfo(jnp.int32).max))
    units = jnp.ldexp(jnp.ones_like(matrix[0]), smallest - exponents)
    lengths = jnp.sqrt(jnp.diagonal(matrix)) if by_norm else units
    linear = scales * lengths

    solution = nonnegative_qp(matrix, linear)

    def on_simplex(y, factors):
        total = jnp.sum(factors * y)
        uniform = safe_divide(active.astype(y.dtype), jnp.sum(active).astype(y.dtype))
        return jnp.where(total > 0, factors * y / total, uniform)

    certified = on_simplex(solution.weights, linear)
    # (Hv)_i
    demanding = linear > 0
    descent = matrix @ safe_divide(certified, linear) / jnp.where(demanding, linear, 1)
    value = certified @ descent
    least = jnp.min(jnp.where(demanding, descent, jnp.inf))
    return solution._replace(
        weights=certified if raw else on_simplex(solution.weights, units),
        residual=safe_divide(value - least, value),
    )


@named
@by_name("preference")
def mgda(
    normalization: Normalization = "none",
    *,
    apply_to: ApplyTo = "normalized",
    preference: TaskValues | None = None,
) -> Weighting:
    """`mgda_weights` as a weighting for `multitask` and `samo`.

    Args:
        normalization: "none", "l2", "loss" or "loss+", see `mgda_weights`.
        apply_to: "normalized" or "raw", see `mgda_weights`.
        preference: p, shape (K,) or by name, non-negative, of any scale, to which the
            tasks' rates are proportional. None: uniform.

    Returns:
        A `Weighting` that needs `losses` for "loss" and "loss+". On a non-finite
        Gramian (or losses used that are not positive) it keeps its last weights,
        uniform ones if it never had others. Its state says so: `info.finite` is False,
        and with losses `unusable` counts the updates with one that is not positive,
        task by task.

    Raises:
        ValueError: if `normalization` or `apply_to` is none of the above, or
            `preference` is negative.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.mgda()
        >>> gramian = jnp.diag(jnp.array([1.0, 3.0]))
        >>> weights, state = weighting.update(gramian, weighting.init(2))
        >>> print(weights, state.info.converged)
        [0.75 0.25] True
    """
    _check(normalization, apply_to, preference)

    solve = partial(
        _solve, preference=preference, normalization=normalization, apply_to=apply_to
    )
    if normalization in ("loss", "loss+"):
        return gramian_and_loss_weighting(solve)
    return gramian_weighting(lambda gramian, present: solve(gramian, None, present)[:2])
