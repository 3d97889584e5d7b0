"""`aligned_mtl`: the gradients' principal components, brought to one length."""

from functools import partial
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from samo_jax._checks import TaskValues, Vector, check_choice, check_preference
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._task_vectors import preference_vector
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.gramian._gramian_weighting import gramian_weighting
from samo_jax._combiners.solvers._correlation import common_scale, direct, spectrum
from samo_jax._combiners.solvers._equilibrate import (
    Equilibrated,
    Solution,
    check_gramian,
    in_order,
    solve_gramian,
)
from samo_jax._named import named

ScaleMode: TypeAlias = Literal["min", "median", "rmse"]


def aligned_mtl_weights(
    gramian: ArrayLike,
    scale_mode: ScaleMode = "min",
    preference: Vector | None = None,
    *,
    present: ArrayLike | None = None,
) -> jax.Array:
    """Weights of Aligned-MTL, `w = sqrt(s) G^(-1/2) p`.

    With these, `d = J'w` combines, with the preference p, the gradients closest to J
    among those with orthogonal rows of one length, sqrt(s): a condition number of 1.
    s is the smallest, the (lower) median or the mean ("rmse") of G's eigenvalues.

    Eigenvalues within rounding of zero, relative to the largest, are left out; in
    float32 the gradient norms can spread over a factor of about 1e3 before the smallest
    go. w jumps when an eigenvalue passes that cut, because s then does. Weights may be
    negative, and d may conflict.

    Tasks with a zero gradient are left out (weight 0). All-zero and non-finite Gramians
    give uniform weights. `w` does not change when G is scaled.

    Args:
        gramian: G, shape (K, K), inner products of the task gradients.
        scale_mode: "min", "median" or "rmse", which eigenvalue s is.
        preference: p, shape (K,), non-negative, used as given. None: 1/K each (LibMTL
            uses 1 each).
        present: shape (K,), bool, the tasks that take part; others get the weight 0.
            None: all.

    Returns:
        w, shape (K,).

    Raises:
        ValueError: if `gramian` is not square, `scale_mode` is none of the above, or
            `preference` is negative, not finite or not of shape (K,).

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> gramian = jnp.diag(jnp.array([1.0, 4.0]))
        >>> print(samo_jax.aligned_mtl_weights(gramian))
        [0.5  0.25]

    References:
        Senushkin, Patakin, Kuznetsov and Konushin, `Independent Component Alignment for
        Multi-Task Learning <https://arxiv.org/abs/2305.19000>`_, 2023
    """
    _check_scale_mode(scale_mode)
    check_preference(preference)
    return _solve(gramian, preference, scale_mode, present)[0]


def _check_scale_mode(scale_mode):
    check_choice("scale_mode", scale_mode, get_args(ScaleMode))


@partial(jax.jit, static_argnames="scale_mode")
def _solve(gramian, preference, scale_mode, present):
    gramian = check_gramian(gramian)
    preference = preference_vector(preference, len(gramian), present)
    solve = partial(_aligned, scale_mode=scale_mode)
    return solve_gramian(gramian, in_order(solve), preference, present=present)


def _aligned(problem: Equilibrated, preference, scale_mode: ScaleMode) -> Solution:
    preference = jnp.where(problem.active, preference, 0)
    decomposition = spectrum(common_scale(problem))
    values, _, kept = decomposition
    # The kept eigenvalues are the last `rank` ones, in ascending order.
    rank = jnp.sum(kept)
    first = values.shape[0] - rank
    if scale_mode == "rmse":
        scale = jnp.sum(jnp.where(kept, values, 0)) / rank.astype(values.dtype)
    else:
        scale = values[first if scale_mode == "min" else first + (rank - 1) // 2]
    return direct(
        decomposition.apply(lambda values: jnp.sqrt(scale / values), preference)
    )


@named
@by_name("preference")
def aligned_mtl(
    scale_mode: ScaleMode = "min",
    preference: TaskValues | None = None,
) -> Weighting:
    """`aligned_mtl_weights` as a weighting for `multitask` and `samo`.

    Args:
        scale_mode: "min", "median" or "rmse", which eigenvalue sets the length.
        preference: p, shape (K,) or by name, non-negative, used as given. None: 1/K
            each.

    Returns:
        A `Weighting`. On a non-finite Gramian it keeps its last weights;
        `SolverState.info` says so.

    Raises:
        ValueError: if `scale_mode` is none of the above, or `preference` is negative
            or not finite; in `update`, if its length is not K.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.aligned_mtl("rmse")
        >>> gramian = jnp.diag(jnp.array([2.0, 8.0]))
        >>> weights, _ = weighting.update(gramian, weighting.init(2))
        >>> print(weights)
        [0.79... 0.39...]
    """
    _check_scale_mode(scale_mode)
    check_preference(preference)
    return gramian_weighting(
        lambda gramian, present: _solve(gramian, preference, scale_mode, present)
    )
