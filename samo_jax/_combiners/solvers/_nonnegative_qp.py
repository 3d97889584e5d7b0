"""`nonnegative_qp`: `min_y y'Cy / 2 - c'y` over y >= 0."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from samo_jax._combiners.solvers._batches import one_by_one_on_cpu
from samo_jax._combiners.solvers._compensated import matvec
from samo_jax._combiners.solvers._equilibrate import Solution, add_ridge, fall_back
from samo_jax._tree import safe_divide

_FULL_EXCHANGES = 5
_REFINEMENTS = 2
_INTERIOR_STEPS = 30
_STEP_TO_BOUNDARY = 0.99
_RIDGE = 32


@one_by_one_on_cpu
def nonnegative_qp(matrix: jax.Array, linear: jax.Array) -> Solution:
    """Solve `min_y y'Cy / 2 - c'y` over y >= 0.

    Exactly, by an active-set method. Where that does not find the support (C singular
    and the problem degenerate or unbounded), by an interior-point method with a
    relative ridge, and `converged` is False.

    Args:
        matrix: C, shape (K, K), positive semidefinite, diagonal near one.
        linear: linear term c, shape (K,).

    Returns:
        y, with `residual = max |min(y, C y - c)|` relative to max |c|.
    """
    ridge = _RIDGE * float(jnp.finfo(matrix.dtype).eps)
    solution = fall_back(
        _active_set(matrix, linear),
        lambda: _interior_point(add_ridge(matrix, ridge), linear),
    )
    y = solution.weights
    violation = jnp.max(jnp.abs(jnp.minimum(y, matrix @ y - linear)))
    return solution._replace(residual=safe_divide(violation, jnp.max(jnp.abs(linear))))


def _interior_point(matrix: jax.Array, linear: jax.Array) -> Solution:
    """Mehrotra's predictor-corrector method, until y or z is nothing, or it stands.

    With z = C y - c, Newton's method on `y_i z_i = sigma mu` solves
    `(C + diag(z / y)) dy = c - C y + (sigma mu - dy_p dz_p) / y`.
    """
    num_tasks = matrix.shape[0]
    eps = float(jnp.finfo(matrix.dtype).eps)
    identity = jnp.eye(num_tasks, dtype=matrix.dtype)

    def longest(y, z, dy, dz):
        ratio = jnp.minimum(
            jnp.min(jnp.where(dy < 0, -y / jnp.where(dy < 0, dy, 1), jnp.inf)),
            jnp.min(jnp.where(dz < 0, -z / jnp.where(dz < 0, dz, 1), jnp.inf)),
        )
        return jnp.minimum(1, _STEP_TO_BOUNDARY * ratio)

    def step(carry):
        y, z, steps, _ = carry
        gap = y @ z / num_tasks
        high, low = matvec(matrix, y)
        mismatch = (high - linear - z) + low
        system = matrix + jnp.diag(z / y)
        jacobi = lax.rsqrt(jnp.diagonal(system))
        system = jacobi[:, None] * system * jacobi[None, :] + eps * identity
        factor = (jnp.linalg.cholesky(system, symmetrize_input=False), True)

        def newton(target):
            """The step towards `y z = target`, linearised."""
            right = target / y - z - mismatch
            dy = jacobi * cho_solve(factor, jacobi * right)
            return dy, target / y - z - z / y * dy

        dy, dz = newton(jnp.zeros_like(y))
        length = longest(y, z, dy, dz)
        centring = ((y + length * dy) @ (z + length * dz) / num_tasks / gap) ** 3
        dy, dz = newton(centring * gap - dy * dz)
        length = longest(y, z, dy, dz)
        new = (y + length * dy, z + length * dz)
        usable = jnp.all(jnp.isfinite(dy) & (new[0] > 0) & (new[1] > 0))
        y, z = jax.tree.map(lambda a, b: jnp.where(usable, a, b), new, (y, z))
        return y, z, steps + 1, usable

    def unfinished(carry):
        y, z, steps, usable = carry
        # Far below the rounding of C y, for a step costs as much as a pivot.
        small = eps**1.5 * jnp.max(jnp.abs(linear))
        near = jnp.max(jnp.minimum(y, z)) <= small
        return usable & ~near & (steps < _INTERIOR_STEPS)

    ones = jnp.ones_like(linear)
    start = (ones, ones, jnp.array(0, jnp.int32), jnp.array(True))
    y, z, steps, _ = lax.while_loop(unfinished, step, start)
    residual = jnp.max(jnp.minimum(y, z))
    return Solution(jnp.where(y > z, y, 0), residual, steps, jnp.array(False))


def _active_set(matrix: jax.Array, linear: jax.Array) -> Solution:
    """Block principal pivoting.

    Guess the support F, solve `C_FF y_F = c_F`, exchange every index whose y (on F) or
    z = C y - c (off F) is negative, until there is none. If their number does not fall
    for a few rounds, only the last one is exchanged (Portugal, Judice and Vicente,
    1994, "A comparison of block pivoting and interior-point algorithms for linear least
    squares problems with nonnegative variables", Math. Comp. 63). Solves are refined
    with doubled precision, but for those whose exchanges are clear without.
    """
    num_tasks = matrix.shape[0]
    eps = float(jnp.finfo(matrix.dtype).eps)
    # Keeps the factorisation positive definite; refinement removes its effect.
    shift = 8 * eps * num_tasks**0.5
    magnitude = jnp.abs(matrix)
    index = jnp.arange(num_tasks)

    def pivot(carry):
        support, _, fewest, patience, steps = carry
        block = jnp.where(support[:, None] & support[None, :], matrix, 0)
        block = block + jnp.diag(jnp.where(support, shift, 1).astype(matrix.dtype))
        factor = (jnp.linalg.cholesky(block, symmetrize_input=False), True)

        def solve(right):
            return cho_solve(factor, jnp.where(support, right, 0))

        def slack(y):
            high, low = matvec(matrix, y)
            return (high - linear) + low

        def refine(carry):
            y, z, rounds = carry
            y = y - solve(z)
            return y, slack(y), rounds + 1

        def find_infeasible(y, z):
            tolerance = 2 * eps * (magnitude @ jnp.abs(y) + jnp.abs(linear))
            return jnp.where(support, y < 0, z < -tolerance)

        def unrefined(carry):
            y, z, rounds = carry
            clear = find_infeasible(y, z).any() & (patience == _FULL_EXCHANGES)
            return (rounds == 0) | (~clear & (rounds <= _REFINEMENTS))

        start = (jnp.zeros_like(linear), -linear, jnp.array(0, jnp.int32))
        y, z, _ = lax.while_loop(unrefined, refine, start)
        infeasible = find_infeasible(y, z)
        count = jnp.sum(infeasible, dtype=jnp.int32)
        patience = jnp.where(count < fewest, _FULL_EXCHANGES, patience - 1)
        last = num_tasks - 1 - jnp.argmax(infeasible[::-1])
        support ^= jnp.where(patience > 0, infeasible, index == last)
        fewest = jnp.minimum(fewest, count)
        return support, (y, z, infeasible), fewest, patience, steps + 1

    def unfinished(carry):
        _, (_, _, infeasible), _, _, steps = carry
        return infeasible.any() & (steps < 20 + num_tasks // 2)

    # Before the first pivot every index is to be exchanged.
    start = (
        linear > 0,
        (jnp.zeros_like(linear), -linear, jnp.ones_like(linear, bool)),
        jnp.array(num_tasks + 1, jnp.int32),
        jnp.array(_FULL_EXCHANGES, jnp.int32),
        jnp.array(0, jnp.int32),
    )
    carry = lax.while_loop(unfinished, pivot, start)
    _, (y, z, infeasible), _, _, steps = carry
    solved = jnp.all(jnp.isfinite(y)) & ~infeasible.any()
    residual = jnp.max(jnp.abs(jnp.minimum(y, z)))
    return Solution(jnp.maximum(y, 0), residual, steps, solved)
