"""The alpha-fair core: `C y = b y^-p`, y > 0, by a primal-dual Newton method."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from samo_jax._solvers._compensated import matvec
from samo_jax._solvers._equilibrate import Solution, add_ridge, fall_back

MAX_STEPS = 50
_STEP_TO_BOUNDARY = 0.95
_RIDGE = 1024


def alpha_fair(matrix: jax.Array, scale: jax.Array, p: jax.Array) -> Solution:
    """Solve `C y = b * y**-p` for y > 0.

    It is the stationarity condition of the strictly convex
    `y'Cy / 2 - sum_i b_i y_i^(1-p) / (1-p)` (log for p = 1), hence the solution is
    unique, and exists unless `C v = 0` for some nonzero v >= 0. With z = C y, Newton's
    method on `{C y = z, p log y + log z = log b}` in the relative steps x = dy / y and
    v = dz / z solves one symmetric positive definite system a step:
    `(Y C Y + p diag(y z)) x = -y (C y - z + z r)`, `v = -r - p x`,
    r = log(z y^p / b).

    Args:
        matrix: C, shape (K, K), positive semidefinite, diagonal near one.
        scale: b, shape (K,), positive.
        p: exponent, positive scalar.

    Returns:
        The best iterate by `residual = max_i |(C y)_i y_i^p / b_i - 1|`. It has
        converged where Newton's steps have reached the rounding of y; where they do not
        (no solution exists, or it is out of the precision's reach), a relative ridge is
        added to C.
    """
    solution = _newton(matrix, scale, p)
    return fall_back(solution, lambda: _newton(add_ridge(matrix, _RIDGE), scale, p))


def _newton(matrix: jax.Array, scale: jax.Array, p: jax.Array) -> Solution:
    dtype = matrix.dtype
    eps = float(jnp.finfo(dtype).eps)
    identity = jnp.eye(matrix.shape[0], dtype=dtype)
    rounding = (1 + p) * eps

    def residual(y, product):
        return jnp.max(jnp.abs((product[0] + product[1]) * y**p / scale - 1))

    def newton_step(carry):
        y, z, product, best, last_change, _, steps = carry
        mismatch = (product[0] - z) + product[1]
        r = jnp.log(z * y**p / scale)
        hessian = y[:, None] * matrix * y[None, :] + jnp.diag(p * y * z)
        jacobi = lax.rsqrt(jnp.diagonal(hessian))
        hessian = jacobi[:, None] * hessian * jacobi[None, :] + eps * identity
        factor = (jnp.linalg.cholesky(hessian, symmetrize_input=False), True)
        x = jacobi * cho_solve(factor, -jacobi * y * (mismatch + z * r))
        solvable = jnp.all(jnp.isfinite(x))
        x = jnp.where(solvable, x, 0)
        v = -r - p * x
        longest = jnp.maximum(jnp.max(-x), jnp.max(-v))
        length = _STEP_TO_BOUNDARY / jnp.maximum(longest, _STEP_TO_BOUNDARY)
        # y + y * x, not y * (1 + x): the latter rounds small steps away.
        y, z = y + y * (length * x), z + z * (length * v)
        product = matvec(matrix, y)
        candidate = (y, residual(y, product))
        best = jax.tree.map(
            lambda new, old: jnp.where(candidate[1] < best[1], new, old),
            candidate,
            best,
        )
        change = jnp.max(jnp.abs(x))
        stalled = (change < 16 * rounding) & (change > last_change / 2)
        done = (length == 1) & solvable & ((change <= 2 * rounding) | stalled)
        return y, z, product, best, change, done, steps + 1

    # Exact for a diagonal C, then an exact line search along the ray.
    y = (scale / jnp.diagonal(matrix)) ** (1 / (1 + p))
    curvature = y @ (matrix @ y)
    ray = jnp.sum(scale * y ** (1 - p)) / jnp.where(curvature > 0, curvature, 1)
    y = y * ray ** (1 / (1 + p))
    product = matvec(matrix, y)
    carry = (
        y,
        scale * y**-p,
        product,
        (y, residual(y, product)),
        jnp.array(jnp.inf, dtype),
        jnp.array(False),
        jnp.array(0, jnp.int32),
    )
    carry = lax.while_loop(lambda c: ~c[5] & (c[6] < MAX_STEPS), newton_step, carry)
    _, _, _, (y, error), _, done, steps = carry
    # Newton's steps may also end, by rounding, far from any solution.
    return Solution(y, error, steps, done & (error < 0.1))
