"""`prescribed_cosines`; norms, correlations and spectra of an equilibrated Gramian."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._combiners.solvers._batches import one_by_one_on_cpu
from samo_jax._combiners.solvers._compensated import matvec
from samo_jax._combiners.solvers._equilibrate import Equilibrated, Solution
from samo_jax._combiners.solvers._solve_info import SolveInfo

_REFINEMENTS = 2


def direct(weights: jax.Array, residual: jax.Array | None = None) -> Solution:
    """The solution of a core without iterations."""
    return Solution(
        weights=weights,
        residual=jnp.zeros((), weights.dtype) if residual is None else residual,
        steps=jnp.zeros((), jnp.int32),
        converged=jnp.ones((), bool),
    )


def relative_norms(problem: Equilibrated) -> jax.Array:
    """Gradient norms in units (a power of two) near the smallest; inactive tasks: 1."""
    matrix, exponents, active, _ = problem
    smallest = jnp.min(jnp.where(active, exponents, jnp.iinfo(jnp.int32).max))
    norms = jnp.ldexp(jnp.sqrt(jnp.diagonal(matrix)), exponents - smallest)
    return jnp.where(active, norms, 1)


def common_scale(problem: Equilibrated) -> jax.Array:
    """The Gramian in units near its largest entry; zero gradients stay zero."""
    matrix, exponents, active, _ = problem
    largest = jnp.max(jnp.where(active, exponents, jnp.iinfo(jnp.int32).min))
    shift = jnp.where(active, exponents - largest, 0)
    matrix = jnp.ldexp(jnp.ldexp(matrix, shift[:, None]), shift[None, :])
    return jnp.where(active[:, None] & active[None, :], matrix, 0)


class Spectrum(NamedTuple):
    """Eigenvalues, ascending, and eigenvectors of a positive semidefinite matrix.

    Attributes:
        values: eigenvalues, shape (K,).
        vectors: eigenvectors in columns, shape (K, K).
        kept: whether an eigenvalue is above the rounding of the largest, shape (K,).
    """

    values: jax.Array
    vectors: jax.Array
    kept: jax.Array

    def apply(self, function, vector: jax.Array) -> jax.Array:
        """`V f(L) V' x` over the kept eigenvalues."""
        factors = jnp.where(
            self.kept, function(jnp.where(self.kept, self.values, 1)), 0
        )
        coordinates = jnp.matmul(vector, self.vectors, precision="highest")
        return jnp.matmul(self.vectors, factors * coordinates, precision="highest")


def rank_tolerance(matrix: jax.Array) -> float:
    """Eigenvalues below this fraction of the largest are rounding errors."""
    return 8 * matrix.shape[0] * float(jnp.finfo(matrix.dtype).eps)


def spectrum(matrix: jax.Array) -> Spectrum:
    """Eigendecomposition with a relative rank cut."""
    values, vectors = _eigh(matrix)
    kept = values > rank_tolerance(matrix) * jnp.maximum(values[-1], 0)
    return Spectrum(values, vectors, kept)


@jax.custom_jvp
@one_by_one_on_cpu
def _eigh(matrix):
    return tuple(jnp.linalg.eigh(matrix, symmetrize_input=False))


@_eigh.defjvp
def _eigh_jvp(primals, tangents):
    """JAX's own rule, which reverse mode cannot reach through `custom_vmap`."""
    (matrix,), (change,) = primals, tangents
    values, vectors = _eigh(matrix)
    rotated = jnp.linalg.multi_dot([vectors.T, change, vectors], precision="highest")
    identity = jnp.eye(len(values), dtype=values.dtype)
    mixing = rotated * (1 / (identity + values - values[:, None]) - identity)
    turned = jnp.matmul(vectors, mixing, precision="highest")
    return (values, vectors), (jnp.diagonal(rotated), turned)


class CosineSolution(NamedTuple):
    """Coefficients of unit gradients with prescribed cosines.

    Attributes:
        coefficients: coefficients y, shape (K,).
        products: products C y, shape (K,).
        solvable: whether p is in the range of C, shape (). False: p lies in the null
            space of C, and y is noise.
    """

    coefficients: jax.Array
    products: jax.Array
    solvable: jax.Array


def prescribed_cosines(problem: Equilibrated, target: jax.Array) -> CosineSolution:
    """Solve `C y = p` with C the tasks' correlation matrix, in the least-squares sense.

    The pseudo-inverse by an eigendecomposition, refined with doubled precision: where C
    has full rank, y is accurate to working precision well beyond what `C^+` is.

    Args:
        problem: the equilibrated Gramian.
        target: cosines p, shape (K,), zero for inactive tasks.
    """
    matrix, _, active, _ = problem
    lengths = jnp.sqrt(jnp.diagonal(matrix))
    matrix = matrix / lengths[:, None] / lengths[None, :]
    matrix = jnp.where(active[:, None] & active[None, :], matrix, 0)
    decomposition = spectrum(matrix)

    y = decomposition.apply(jnp.reciprocal, target)
    for _ in range(_REFINEMENTS):
        high, low = matvec(matrix, y)
        y = y + decomposition.apply(jnp.reciprocal, (target - high) - low)
    high, low = matvec(matrix, y)
    products = high + low
    # p'y = p'C^+ p is at least |P p|^2 / K, P the projection onto the range of C.
    solvable = target @ y > rank_tolerance(matrix) * (target @ target)
    return CosineSolution(y, products, solvable)


def judge(info: SolveInfo) -> SolveInfo:
    """`info`, not converged where the residual says that the equations do not hold."""
    tolerance = float(jnp.finfo(info.residual.dtype).eps) ** 0.5
    return info._replace(converged=info.converged & (info.residual < tolerance))
