"""`operate`: gradient surgery, the core of PCGrad and GradVac, on Gramians."""

import jax
import jax.numpy as jnp
from jax import lax

from samo_jax._combiners.solvers._equilibrate import Equilibrated
from samo_jax._tree import safe_divide


def operate(
    problem: Equilibrated, targets: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Raise every gradient's cosines with the others to their targets, one by one.

    For each i, with h = g_i and the other tasks j in a random order of i's own: where
    `cos(h, g_j) < t_ij`, h moves along g_j to `cos(h, g_j) = t_ij`,

    `h <- h + (t_ij / sqrt(1 - t_ij^2) dist - <h, g_j> / ||g_j||) g_j / ||g_j||`

    with `dist = sqrt(||h||^2 - <h, g_j>^2 / ||g_j||^2)`. Targets of zero project h onto
    the plane normal to g_j.

    Args:
        problem: the equilibrated Gramian.
        targets: cosine targets t, shape (K, K), in [-1, 1].
        key: typed PRNG key.

    Returns:
        w, shape (K,), the mean of the operated gradients as weights, and
        `cos(h, g_j)`, shape (K, K), as met in row i before h moved.
    """
    matrix, exponents, active, _ = problem
    num_tasks = matrix.shape[0]
    squares = jnp.diagonal(matrix)
    margin = float(jnp.finfo(matrix.dtype).eps) ** 0.5
    slopes = targets * lax.rsqrt(jnp.maximum(1 - targets**2, margin))

    def operate_on(task, order, targets, slopes):
        def move(carry, other):
            # h = sum_j c_j g_j, and u = C c.
            coefficients, products = carry
            square = squares[other]
            product = products[other]
            length = jnp.sqrt(jnp.maximum(coefficients @ products, 0) * square)
            cosine = jnp.clip(safe_divide(product, length), -1, 1)
            distance = coefficients @ products - product**2 / square
            step = slopes[other] * jnp.sqrt(jnp.maximum(distance, 0) / square)
            step = step - product / square
            moves = (product < targets[other] * length) & (other != task)
            step = jnp.where(moves & active[other], step, 0)
            coefficients = coefficients.at[other].add(step)
            return (coefficients, products + step * matrix[other]), cosine

        start = (jax.nn.one_hot(task, num_tasks, dtype=matrix.dtype), matrix[task])
        (coefficients, _), met = lax.scan(move, start, order)
        return coefficients, jnp.zeros_like(met).at[order].set(met)

    tasks = jnp.arange(num_tasks)
    orders = jax.vmap(lambda k: jax.random.permutation(k, num_tasks))(
        jax.random.split(key, num_tasks)
    )
    rows, cosines = jax.vmap(operate_on)(tasks, orders, targets, slopes)
    rows = jnp.where(active[:, None], rows, 0)
    rows = jnp.ldexp(rows, exponents[:, None] - exponents[None, :])
    return jnp.sum(rows, axis=0) / problem.num_present, cosines
