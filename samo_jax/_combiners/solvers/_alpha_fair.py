"""`alpha_fair`: `C y = b y^-p`, y > 0, by a primal-dual Newton method."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from samo_jax._combiners.solvers._batches import one_by_one_on_cpu
from samo_jax._combiners.solvers._compensated import matvec
from samo_jax._combiners.solvers._equilibrate import Solution, add_ridge, fall_back
from samo_jax._combiners.solvers._nonnegative_qp import nonnegative_qp

MAX_STEPS = 100
_LONGEST_STEP = 3


@one_by_one_on_cpu
def alpha_fair(matrix: jax.Array, scale: jax.Array, p: jax.Array) -> Solution:
    """Solve `C y = b * y**-p` for y > 0.

    It is the stationarity condition of the strictly convex
    `y'Cy / 2 - sum_i b_i y_i^(1-p) / (1-p)` (log for p = 1), hence the solution is
    unique, and exists unless `C v = 0` for some nonzero v >= 0. With z = C y, Newton's
    method on `{C y = z, p log y + log z = log b}` in the relative steps x = dy / y and
    v = dz / z solves one symmetric positive definite system a step:
    `(Y C Y + p diag(y z)) x = -y (C y - z + z r)`, `v = -r - p x`,
    r = log(z y^p / b). The step is taken in log y and log z, which keeps the second
    equation linear; neither may grow, and not both may change, by more than a factor.

    Args:
        matrix: C, shape (K, K), positive semidefinite, diagonal near one.
        scale: b^(1 / max(1, p)), shape (K,), positive, its logarithms near zero on
            average.
        p: exponent, positive scalar.

    Returns:
        y with `residual = max_i |(C y)_i - b_i y_i^-p|` relative to `(|C| y)_i`. It has
        converged where Newton's steps have reached the rounding of y, and the rounding
        of `C y` cannot turn a task's rate against it. Elsewhere (no solution exists, or
        it is out of the precision's reach) a relative ridge is added to C, and y raised
        until `C y >= 0`.
    """
    ridge = float(jnp.finfo(matrix.dtype).eps) ** (1 / 3)

    def attempt(carry):
        attempts, last = carry
        solution = _newton(add_ridge(matrix, attempts * ridge), scale, p)
        return attempts + 1, solution._replace(steps=last.steps + solution.steps)

    def unsolved(carry):
        attempts, last = carry
        return (attempts == 0) | ((attempts == 1) & ~last.converged)

    zero = jnp.zeros((), matrix.dtype)
    start = Solution(scale, zero, jnp.array(0, jnp.int32), jnp.array(False))
    attempts, solution = lax.while_loop(unsolved, attempt, (zero, start))

    def without_conflict():
        rates, _ = matvec(matrix, solution.weights)
        raised = nonnegative_qp(matrix, -rates)
        return raised._replace(weights=solution.weights + raised.weights)

    return fall_back(solution._replace(converged=attempts == 1), without_conflict)


def _newton(matrix: jax.Array, scale: jax.Array, p: jax.Array) -> Solution:
    dtype = matrix.dtype
    eps = float(jnp.finfo(dtype).eps)
    # Weights and rates below do not matter; they only have to stay numbers.
    smallest = float(jnp.finfo(dtype).tiny) ** 0.75
    squares = jnp.diagonal(matrix)
    magnitude = jnp.abs(matrix)
    larger = jnp.maximum(p, 1)

    def move(u, x):
        """`u exp(x)`, without rounding small steps away."""
        moved = jnp.where(x > -1, u + u * jnp.expm1(x), u * jnp.exp(x))
        return jnp.maximum(moved, smallest)

    def newton_step(carry):
        y, z, last_change, _, _, steps = carry
        high, low = matvec(matrix, y)
        terms = magnitude @ y
        length = jnp.sqrt(y @ z)
        harmless = eps * terms <= jnp.maximum(0.1 * z, eps**0.5 * length)
        mismatch = (high - z) + low
        r = larger * jnp.log(z ** (1 / larger) * y ** (p / larger) / scale)
        vanishes = jnp.minimum(y, z) < 8 * smallest
        r = jnp.where(vanishes, jnp.minimum(r, 0), r)

        # Its diagonal is one after the scaling.
        jacobi = lax.rsqrt(squares + p * z / y)
        hessian = jacobi[:, None] * matrix * jacobi[None, :]
        hessian = jnp.fill_diagonal(hessian, 1 + eps, inplace=False)
        factor = (jnp.linalg.cholesky(hessian, symmetrize_input=False), True)
        x = jacobi / y * cho_solve(factor, -jacobi * (mismatch + z * r))
        solvable = jnp.all(jnp.isfinite(x))
        x = jnp.where(solvable, x, 0)
        v = -r - p * x

        change = jnp.max(jnp.abs(x))
        both = jnp.max(jnp.minimum(jnp.abs(x), jnp.abs(v)))
        longest = jnp.maximum(both, jnp.maximum(jnp.max(x), jnp.max(v)))
        part = _LONGEST_STEP / jnp.maximum(longest, _LONGEST_STEP)
        # What rounding of C y alone does to x.
        noise = 1 + terms / (squares * y + p * z)
        noisy_change = jnp.max(jnp.abs(x) / noise)
        stalled = (noisy_change < 16 * eps) & (noisy_change > last_change / 2)
        done = (part == 1) & solvable & ((change <= 2 * (1 + 1 / p) * eps) | stalled)
        return (
            move(y, part * x),
            move(z, part * v),
            noisy_change,
            done,
            harmless.all(),
            steps + 1,
        )

    def unfinished(carry):
        _, _, _, done, harmless, steps = carry
        return ~done & harmless & (steps < MAX_STEPS)

    ones = jnp.ones_like(scale)
    carry = (
        ones,
        ones,
        jnp.array(jnp.inf, dtype),
        jnp.array(False),
        jnp.array(True),
        jnp.array(0, jnp.int32),
    )
    y, _, _, done, harmless, steps = lax.while_loop(unfinished, newton_step, carry)

    high, low = matvec(matrix, y)
    terms = magnitude @ y
    target = (scale / y ** (p / larger)) ** larger
    error = (high - target) + low
    error = jnp.where(y < 8 * smallest, jnp.maximum(error, 0), jnp.abs(error))
    return Solution(y, jnp.max(error / terms), steps, done & harmless)
