"""`cagrad`: the best worst case within a ball around the mean gradient."""

from typing import Literal, TypeAlias, get_args, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve
from jax.typing import ArrayLike

from samo_jax._checks import (
    TaskValues,
    Vector,
    check_choice,
    check_nonnegative,
    check_preference,
)
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._task_vectors import among_present, relative_preference
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.gramian._gramian_weighting import gramian_weighting
from samo_jax._combiners.solvers._batches import one_by_one_on_cpu
from samo_jax._combiners.solvers._compensated import matvec
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

Rescale: TypeAlias = Literal[0, 1, 2]

_MAX_ROUNDS = 50
_ROUNDINGS = 64


@overload
def cagrad_weights(
    gramian: ArrayLike,
    c: ArrayLike = 0.5,
    rescale: Rescale = 0,
    *,
    preference: Vector | None = None,
    present: ArrayLike | None = None,
    return_info: Literal[False] = False,
) -> jax.Array: ...
@overload
def cagrad_weights(
    gramian: ArrayLike,
    c: ArrayLike = 0.5,
    rescale: Rescale = 0,
    *,
    preference: Vector | None = None,
    present: ArrayLike | None = None,
    return_info: Literal[True],
) -> tuple[jax.Array, SolveInfo]: ...
def cagrad_weights(
    gramian: ArrayLike,
    c: ArrayLike = 0.5,
    rescale: Rescale = 0,
    *,
    preference: Vector | None = None,
    present: ArrayLike | None = None,
    return_info: bool = False,
) -> jax.Array | tuple[jax.Array, SolveInfo]:
    """Weights of `argmax_d min_i <g_i, d>` subject to `||d - g0|| <= c ||g0||`.

    With g0 the mean gradient, `d = g0 + J'v`, `||J'v|| = c ||g0||`, and v >= 0 solves
    the QP `min v'Gv/2 + (G/K 1 - t)'v` for the worst case's rate t, which is found by
    an exact one-dimensional search: on one support `||J'v||` is a quadratic's root in
    t. The weights are `w = 1/K + v`. c = 0 gives the mean; with c >= 1 no task
    conflicts.
    At Pareto-stationary points there is no rate t > 0: if the ball reaches t = 0, d is
    the direction closest to g0 with which no task conflicts (DualProj's). Where all
    gradients cancel to the rounding of G, so does d, and `converged` is False.

    Tasks with a zero gradient are left out (weight 0); all-zero and
    non-finite Gramians give uniform weights; `w` does not change when G is scaled.

    Args:
        gramian: G, shape (K, K), inner products of the task gradients.
        c: radius of the ball relative to `||g0||`, non-negative.
        rescale: 0 returns w, 1 (the reference's default) w / (1 + c^2), 2 w / (1 + c).
        preference: p, shape (K,), non-negative, of any scale: g0 is the mean with these
            weights, p / sum(p) taking the place of 1/K. None: uniform.
        present: shape (K,), bool, the tasks that take part; others get the weight 0.
            None: all.
        return_info: also return a `SolveInfo`, whose residual is
            `| ||J'v|| / (c ||g0||) - 1 |`.

    Returns:
        w, shape (K,), or `(w, info)`.

    Raises:
        ValueError: if `gramian` is not square, `c` is negative, `rescale` not 0, 1 or
            2, or `preference` is not K non-negative numbers.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> gramian = jnp.array([[18.0, -22.0], [-22.0, 38.0]])
        >>> print(samo_jax.cagrad_weights(gramian, 0.5))
        [0.70... 0.5 ...]

    References:
        Liu et al., `Conflict-Averse Gradient Descent for Multi-task Learning
        <https://arxiv.org/abs/2110.14048>`_, 2021
    """
    _check(c, rescale, preference)
    weights, info = _rescaled(gramian, c, rescale, preference, present)
    return (weights, info) if return_info else weights


def _check(c, rescale, preference):
    check_choice("rescale", rescale, get_args(Rescale))
    check_nonnegative("c", c, "0 is the mean.")
    check_preference(preference)


def _rescaled(gramian, c, rescale, preference, present):
    weights, info = _solve(gramian, c, preference, present)
    return weights / (1, 1 + c**2, 1 + c)[rescale], info


@jax.jit
def _solve(gramian, c, preference, present):
    gramian = check_gramian(gramian)
    preference = relative_preference(preference, len(gramian))
    solve = in_order(lambda problem, shares: _conflict_averse(problem, shares, c))
    return solve_gramian(gramian, solve, preference, present=present)


@one_by_one_on_cpu
def _conflict_averse(problem: Equilibrated, preference, c) -> Solution:
    # Units: y_i = 2^(k_i - max k) v_i, and t in those of the smallest gradient.
    matrix, exponents, active, _ = problem
    dtype = matrix.dtype
    eps = float(jnp.finfo(dtype).eps)
    shares = among_present(preference, active)
    largest = jnp.max(jnp.where(active, exponents, jnp.iinfo(jnp.int32).min))
    smallest = jnp.min(jnp.where(active, exponents, jnp.iinfo(jnp.int32).max))
    units = jnp.where(
        active, jnp.ldexp(jnp.ones_like(matrix[0]), smallest - exponents), 0
    )
    mean = jnp.where(active, jnp.ldexp(shares, exponents - largest), 0)
    rates = matvec(matrix, mean)[0]
    square = jnp.maximum(mean @ rates, 0)
    # Where gradients cancel, the mean's length is rounding, and so is every answer.
    known = square > _ROUNDINGS * eps * (mean @ (jnp.abs(matrix) @ mean))
    length = jnp.sqrt(square)
    c = jnp.asarray(c, dtype)
    radius = c * length
    identity = jnp.eye(len(units), dtype=dtype)

    def ascend(t):
        return nonnegative_qp(matrix, t * units - rates)

    def length_of(y):
        return jnp.sqrt(jnp.maximum(y @ (matrix @ y), 0))

    def search(carry):
        low, high, t, _, last = carry
        solution = ascend(t)
        solution = solution._replace(steps=last.steps + solution.steps)
        y = solution.weights
        reach = length_of(y)
        low, high = (
            jnp.where(reach < radius, t, low),
            jnp.where(reach < radius, high, t),
        )
        # While the support stays, y(t) = t p - r.
        support = y > 0
        block = jnp.where(support[:, None] & support[None, :], matrix, identity)
        p = solve(block, jnp.where(support, units, 0), assume_a="pos")
        r = t * p - y
        a, b, q = (left @ (matrix @ right) for left, right in ((p, p), (p, r), (r, r)))
        discriminant = jnp.maximum(b * b - a * (q - radius * radius), 0)
        root = safe_divide(b + jnp.sqrt(discriminant), a)
        inside = (root > low) & (root < high)
        new = jnp.where(inside, root, low / 2 + high / 2)
        close = jnp.abs(new - t) <= 4 * eps * jnp.maximum(jnp.abs(t), jnp.abs(new))
        done = close | (jnp.abs(reach - radius) <= 16 * eps * radius)
        new = jnp.where(done, t, new)
        return low, high, new, done, solution

    # Rates t <= 0 are always in reach of some direction, d = 0 at the least; t = 0 is
    # where c >= 1.
    at_zero = ascend(jnp.zeros((), dtype))
    ascends = (c >= 1) | ((radius > 0) & (length_of(at_zero.weights) <= radius))
    bound = jnp.where(
        active, jnp.sqrt(jnp.diagonal(matrix)) * (length + radius), jnp.inf
    )
    low = jnp.min(jnp.where(active, safe_divide(rates, units), jnp.inf))
    high = jnp.min(jnp.where(active, safe_divide(bound, units), jnp.inf))
    low, high = (
        jnp.where(ascends, jnp.maximum(low, 0), low),
        jnp.where(ascends, high, 0),
    )
    start = (low, high, low / 2 + high / 2)
    carry = (*start, jnp.array(False), at_zero)

    def unfinished(carry):
        index, (_, _, _, done, _) = carry
        return ~done & (index < _MAX_ROUNDS)

    _, (_, _, t, _, solution) = lax.while_loop(
        unfinished, lambda carry: (carry[0] + 1, search(carry[1])), (0, carry)
    )
    reach = length_of(solution.weights)
    y = solution.weights * safe_divide(radius, reach)
    residual = jnp.abs(safe_divide(reach, radius) - 1)
    residual = jnp.where(radius > 0, residual, 0)
    # A rate t within the rounding of C y is none.
    rounding = _ROUNDINGS * eps * jnp.max(jnp.abs(matrix) @ y)
    real = (t <= 0) | (t * jnp.max(units) > rounding)
    error = jnp.maximum(residual, solution.residual)
    solved = real & (error < eps**0.5)
    # Far nearer than t = 0 even where rounding leaves the search unfinished, but for
    # the promise that c >= 1 makes.
    near = solved | ((c < 1) & real & (error < eps**0.25))
    y = jnp.where(ascends & ~(known & near), at_zero.weights, y)
    return Solution(
        shares + jnp.ldexp(y, largest - exponents),
        residual,
        solution.steps,
        solved & (known | (c == 0)),
    )


@named
@by_name("preference")
def cagrad(
    c: float = 0.5, rescale: Rescale = 0, *, preference: TaskValues | None = None
) -> Weighting:
    """`cagrad_weights` as a weighting for `multitask` and `samo`.

    Args:
        c: radius of the ball relative to `||g0||`, non-negative. SAMO's scripts use
            0.4.
        rescale: 0, 1 or 2, see `cagrad_weights`. SAMO's scripts use 1.
        preference: p, shape (K,) or by name, non-negative: g0 is the mean with these
            weights. None: uniform.

    Returns:
        A `Weighting`. On a non-finite Gramian it keeps its last weights;
        `SolverState.info` says so.

    Raises:
        ValueError: if `c` or `preference` is negative, or `rescale` not 0, 1 or 2.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.cagrad(c=0.0)
        >>> weights, _ = weighting.update(jnp.eye(2), weighting.init(2))
        >>> print(weights)
        [0.5 0.5]
    """
    _check(c, rescale, preference)
    return gramian_weighting(
        lambda gramian, present: _rescaled(gramian, c, rescale, preference, present)
    )
