"""`conflict_free_inverse` (ConFIG): the direction with prescribed cosines."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from samo_jax._checks import TaskValues, Vector, check_preference
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._task_vectors import preference_vector
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.gramian._gramian_weighting import gramian_weighting
from samo_jax._combiners.solvers._correlation import (
    direct,
    judge,
    prescribed_cosines,
    relative_norms,
)
from samo_jax._combiners.solvers._equilibrate import (
    Equilibrated,
    Solution,
    check_gramian,
    in_order,
    solve_gramian,
)
from samo_jax._named import named
from samo_jax._tree import safe_divide


def conflict_free_inverse_weights(
    gramian: ArrayLike,
    preference: Vector | None = None,
    *,
    present: ArrayLike | None = None,
) -> jax.Array:
    """Weights of ConFIG's direction, whose cosines with the gradients are prescribed.

    With `n_i = ||g_i||`, C the tasks' correlation matrix and p the preference,

    `y = C^+ p`, `w_i = (y_i / n_i) (n'C y) / (K y'C y)`.

    The direction `d = J'w` has `cos(d, g_i)` proportional to p_i (equal, by default),
    and is as long as the mean gradient's projection onto it. ConFIG's papers and
    TorchJD project the sum: K times this. Rescaling one gradient leaves the line of d
    as it is, and d is linear in the tasks' scales.

    Weights may be negative. Where gradients are linearly dependent to working
    precision, the cosines hold in the least-squares sense only and d may conflict. If
    the projection is negative, d ascends every task. Where p has no part in the range
    of C (opposite gradients), w is zero.

    Tasks with a zero gradient are left out (weight 0). All-zero and non-finite Gramians
    give uniform weights. `w` does not change when G is scaled.

    Args:
        gramian: G, shape (K, K), inner products of the task gradients.
        preference: p, shape (K,), non-negative; its scale does not matter. None:
            uniform.
        present: shape (K,), bool, the tasks that take part; others get the weight 0.
            None: all.

    Returns:
        w, shape (K,).

    Raises:
        ValueError: if `gramian` is not square, or `preference` is negative,
            not finite or not of shape (K,).

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> gramian = jnp.diag(jnp.array([1.0, 9.0]))
        >>> print(samo_jax.conflict_free_inverse_weights(gramian))
        [1.    0.33...]

    References:
        Liu, Chu and Thuerey, `ConFIG: Towards Conflict-free Training of Physics
        Informed Neural Networks <https://arxiv.org/abs/2408.11104>`_, 2024
    """
    check_preference(preference)
    return _solve(gramian, preference, present)[0]


@jax.jit
def _solve(gramian, preference, present):
    gramian = check_gramian(gramian)
    target = preference_vector(preference, len(gramian), present)
    weights, info = solve_gramian(
        gramian, in_order(_conflict_free), target, present=present
    )
    return weights, judge(info)


def _conflict_free(problem: Equilibrated, target: jax.Array) -> Solution:
    target = jnp.where(problem.active, target, 0)
    target = safe_divide(target, jnp.max(target))
    norms = relative_norms(problem)
    y, products, solvable = prescribed_cosines(problem, target)
    length = jnp.where(solvable, safe_divide(norms @ products, y @ products), 0)
    weights = (y / norms) * (length / problem.num_present)
    return direct(weights, jnp.max(jnp.abs(products - target)))


@named
@by_name("preference")
def conflict_free_inverse(
    preference: TaskValues | None = None,
) -> Weighting:
    """`conflict_free_inverse_weights` as a weighting for `multitask` and `samo`.

    Args:
        preference: p, shape (K,) or by name, non-negative; its scale does not matter.
            None: uniform.

    Returns:
        A `Weighting`. On a non-finite Gramian it keeps its last weights;
        `SolverState.info` says so. Its residual is `max_i |(C y)_i - p_i| / max(p)`;
        not converged means that it is not small.

    Raises:
        ValueError: if `preference` is negative or not finite; in `update`, if
            its length is not K.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.conflict_free_inverse()
        >>> gramian = jnp.diag(jnp.array([1.0, 9.0]))
        >>> weights, _ = weighting.update(gramian, weighting.init(2))
        >>> print(weights)
        [1.    0.33...]
    """
    check_preference(preference)
    return gramian_weighting(
        lambda gramian, present: _solve(gramian, preference, present)
    )
