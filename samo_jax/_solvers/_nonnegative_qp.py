"""The non-negative QP core: `min_y y'Cy / 2 - c'y, y >= 0`, by an active-set method."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from samo_jax._solvers._compensated import matvec
from samo_jax._solvers._equilibrate import Solution

_FULL_EXCHANGES = 5
_REFINEMENTS = 2


def nonnegative_qp(matrix: jax.Array, linear: jax.Array) -> Solution:
    """Solve `min_y y'Cy / 2 - c'y` over y >= 0 exactly.

    Block principal pivoting: guess the support F, solve `C_FF y_F = c_F`, exchange
    every index whose y (on F) or z = C y - c (off F) is negative, until there is none.
    If the number of these does not fall for a few rounds, only the last one is
    exchanged, which cannot cycle (Portugal, Judice and Vicente, 1994, "A comparison of
    block pivoting and interior-point algorithms for linear least squares problems with
    nonnegative variables", Math. Comp. 63). Each solve is refined with doubled
    precision.

    Args:
        matrix: C, shape (K, K), positive semidefinite, diagonal near one.
        linear: c, shape (K,).

    Returns:
        y, `residual = max |min(y, z)|` relative to max(c), and whether the support was
        found.
    """
    num_tasks = matrix.shape[0]
    eps = float(jnp.finfo(matrix.dtype).eps)
    # Keeps the factorisation positive definite; refinement removes its effect.
    shift = 8 * eps * num_tasks**0.5
    magnitude = jnp.abs(matrix)
    index = jnp.arange(num_tasks)

    def pivot(support):
        block = jnp.where(support[:, None] & support[None, :], matrix, 0)
        block = block + jnp.diag(jnp.where(support, shift, 1).astype(matrix.dtype))
        factor = (jnp.linalg.cholesky(block, symmetrize_input=False), True)

        def solve(right):
            return cho_solve(factor, jnp.where(support, right, 0))

        def slack(y):
            high, low = matvec(matrix, y)
            return (high - linear) + low

        y = solve(linear)
        for _ in range(_REFINEMENTS):
            y = y - solve(slack(y))
        z = slack(y)
        tolerance = 2 * eps * (magnitude @ jnp.abs(y) + jnp.abs(linear))
        return y, z, jnp.where(support, y < 0, z < -tolerance)

    def exchange(carry):
        support, (_, _, infeasible), fewest, patience, steps = carry
        count = jnp.sum(infeasible)
        patience = jnp.where(count < fewest, _FULL_EXCHANGES, patience - 1)
        last = num_tasks - 1 - jnp.argmax(infeasible[::-1])
        support ^= jnp.where(patience > 0, infeasible, index == last)
        return (
            support,
            pivot(support),
            jnp.minimum(fewest, count),
            patience,
            steps + 1,
        )

    def unfinished(carry):
        _, (_, _, infeasible), _, _, steps = carry
        return infeasible.any() & (steps < 20 + 2 * num_tasks)

    support = linear > 0
    carry = (
        support,
        pivot(support),
        jnp.array(num_tasks + 1, jnp.sum(support).dtype),
        jnp.array(_FULL_EXCHANGES),
        jnp.array(1, jnp.int32),
    )
    carry = lax.while_loop(unfinished, exchange, carry)
    _, (y, z, infeasible), _, _, steps = carry
    solved = jnp.all(jnp.isfinite(y)) & ~infeasible.any()
    y = jnp.where(jnp.isfinite(y), jnp.maximum(y, 0), 0)
    violation = jnp.max(jnp.abs(jnp.minimum(y, z))) / jnp.max(jnp.abs(linear))
    return Solution(y, violation, steps, solved)
