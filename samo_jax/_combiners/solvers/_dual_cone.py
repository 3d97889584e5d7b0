"""`project`: projections onto the dual cone of the gradients: no task may be hurt."""

import jax
import jax.numpy as jnp

from samo_jax._combiners.solvers._compensated import matvec
from samo_jax._combiners.solvers._equilibrate import Equilibrated, Solution
from samo_jax._combiners.solvers._nonnegative_qp import nonnegative_qp


def project(problem: Equilibrated, preferences: jax.Array) -> Solution:
    """Sum over rows u of `preferences` of the projections of J'u onto the dual cone.

    Each is J'v with `v = argmin v'Gv, v >= u`; with v = u + s this is the QP
    `min s'Gs / 2 + (Gu)'s, s >= 0`.

    Args:
        problem: the equilibrated Gramian.
        preferences: rows u, shape (M, K), non-negative.

    Returns:
        The summed weights, shape (K,); the worst residual, most steps, and whether all
        converged.
    """
    matrix, exponents, active, _ = problem
    # In y_i = 2^k_i s_i; the QP is homogeneous, so powers relative to the largest do.
    relative = jnp.where(active, exponents, jnp.min(exponents))
    relative = relative - jnp.max(jnp.where(active, exponents, relative))

    def project_row(u):
        high, _ = matvec(matrix, jnp.ldexp(jnp.where(active, u, 0), relative))
        solution = nonnegative_qp(matrix, -high)
        return solution._replace(weights=u + jnp.ldexp(solution.weights, -relative))

    solutions = jax.vmap(project_row)(preferences)
    return Solution(
        jnp.sum(solutions.weights, axis=0),
        jnp.max(solutions.residual),
        jnp.max(solutions.steps),
        jnp.all(solutions.converged),
    )
