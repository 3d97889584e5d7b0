"""`matvec`: matrix-vector products with twice the working precision.

Dot2 of Ogita, Rump and Oishi (2005), "Accurate sum and dot product", SIAM J. Sci.
Comput. 26(6). A residual computed this way makes Newton steps and iterative refinement
converge to the correctly rounded solution, also where `C y` cancels almost completely
(gradient norms spread over orders of magnitude).
"""

import jax
import jax.numpy as jnp
from jax import lax


def _split(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`a == high + low`, each with half of the mantissa's bits."""
    format_ = jnp.finfo(a.dtype)
    high = lax.reduce_precision(a, format_.nexp, (format_.nmant - 1) // 2)
    return high, a - high


def _two_product(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded product and its rounding error, both exact."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
    error = a_high * b_high - product
    return product, ((error + a_high * b_low) + a_low * b_high) + a_low * b_low


def _two_sum(x, y):
    """Add two `(value, error)` pairs, keeping the rounding error of the sum."""
    (a, a_error), (b, b_error) = x, y
    total = a + b
    shift = total - a
    return total, (a_error + b_error) + ((a - (total - shift)) + (b - shift))


def matvec(matrix: jax.Array, vector: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`M v` of a symmetric M as an unevaluated sum `high + low` of (K,) arrays."""
    zero = jnp.zeros((), matrix.dtype)
    # Keeps the split inside the caller's loop: hoisted, it is read from memory, and XLA
    # spreads even K = 40 over the CPU's threads, which takes longer.
    matrix, vector = lax.optimization_barrier((matrix, vector))
    # Down the columns, which vectorises over the rows of the symmetric matrix.
    products = _two_product(matrix, vector[:, None])
    return tuple(lax.reduce(products, (zero, zero), _two_sum, (0,)))
