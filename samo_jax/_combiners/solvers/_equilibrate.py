"""`solve_gramian`: the preprocessing that every exact Gramian method shares."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from samo_jax._absent_tasks import among_present
from samo_jax._combiners.solvers._solve_info import SolveInfo
from samo_jax._tasks import present_tasks, uniform_weights
from samo_jax._tree import accumulator_dtype, zero_unless


class Equilibrated(NamedTuple):
    """A Gramian in units in which every task's gradient has a norm near one.

    With integer exponents k, `C_ij = 2^-(k_i + k_j) G_ij` and C_ii in [1/2, 2]. Powers
    of two make the scaling exact. Inactive tasks (absent, or with a zero gradient) have
    k_i = 0 and the identity's row and column.

    Attributes:
        matrix: equilibrated Gramian C, shape (K, K).
        exponents: exponents k, shape (K,), int32.
        active: whether a task is present and has a gradient, shape (K,).
        present: shape (K,), bool, the tasks that there are.
    """

    matrix: jax.Array
    exponents: jax.Array
    active: jax.Array
    present: jax.Array

    @property
    def num_present(self) -> jax.Array:
        """The number of present tasks, at least 1, in the matrix's dtype."""
        return jnp.maximum(jnp.sum(self.present), 1).astype(self.matrix.dtype)


class Solution(NamedTuple):
    """The result of a method's core: shape-(K,) weights and scalar diagnostics."""

    weights: jax.Array
    residual: jax.Array
    steps: jax.Array
    converged: jax.Array


def add_ridge(matrix: jax.Array, ridge: float | jax.Array) -> jax.Array:
    """`C + ridge I`."""
    return matrix + ridge * jnp.eye(matrix.shape[0], dtype=matrix.dtype)


def fall_back(solution: Solution, solve: Callable[[], Solution]) -> Solution:
    """`solution` if it has converged, else that of `solve`, marked as not converged.

    The policy of every core: a Gramian is solved as it is, and with a ridge only where
    that fails (rank-deficient to working precision, or Pareto-stationary).

    The loop of one round skips `solve` under `vmap` too, where `lax.cond` would run it.
    """

    def retry(carry):
        _, first = carry
        other = solve()
        steps = first.steps + other.steps
        return jnp.array(True), other._replace(steps=steps, converged=first.converged)

    carry = (solution.converged, solution)
    return lax.while_loop(lambda carry: ~carry[0], retry, carry)[1]


def check_gramian(gramian: ArrayLike) -> jax.Array:
    """Return a square, symmetric matrix in `accumulator_dtype`."""
    remedy = "Compute it with `samo_jax.gramian(task_grads)`."
    gramian = jnp.asarray(gramian)
    if jnp.iscomplexobj(gramian):
        raise ValueError(f"`gramian` must be real, got {gramian.dtype}. {remedy}")
    gramian = gramian.astype(accumulator_dtype())
    if gramian.ndim != 2 or not gramian.shape[0] == gramian.shape[1] > 0:
        raise ValueError(
            f"`gramian` must have shape (K, K), got {gramian.shape}. {remedy}"
        )
    return gramian / 2 + gramian.T / 2


def equilibrate(
    gramian: jax.Array, present: jax.Array | None = None
) -> tuple[Equilibrated, jax.Array]:
    """The equilibrated Gramian (the identity where it is not finite), and if it is.

    Rows and columns of tasks that are not present (None: all are) do not matter.
    """
    gramian = check_gramian(gramian)
    num_tasks = gramian.shape[0]
    present = present_tasks(present, num_tasks)
    gramian = among_present(gramian, present)
    tiny = jnp.finfo(gramian.dtype).tiny
    identity = jnp.eye(num_tasks, dtype=gramian.dtype)

    finite = jnp.all(jnp.isfinite(gramian))
    gramian = jnp.where(finite, gramian, identity)
    squared_norms = jnp.diagonal(gramian)
    active = present & (squared_norms >= tiny)
    norms = jnp.sqrt(jnp.where(active, squared_norms, 1))
    exponents = jnp.round(jnp.log2(norms)).astype(jnp.int32)
    scales = jnp.ldexp(jnp.ones_like(norms), -exponents)
    matrix = scales[:, None] * gramian * scales[None, :]
    matrix = jnp.where(active[:, None] & active[None, :], matrix, identity)
    return Equilibrated(matrix, exponents, active, present), finite


def conclude(
    solution: Solution, problem: Equilibrated, finite: jax.Array
) -> tuple[jax.Array, SolveInfo]:
    """Weights and `SolveInfo` of a core's solution.

    Inactive tasks get weight 0. Where no task is active, or the Gramian or the solution
    is not finite, the weights of the present tasks are uniform.
    """
    active = problem.active
    weights = zero_unless(active, solution.weights)
    solved = jnp.all(jnp.isfinite(weights))
    uniform = uniform_weights(len(active), problem.present)
    weights = jnp.where(finite & active.any() & solved, weights, uniform)
    converged = finite & solved & solution.converged
    return weights, SolveInfo(solution.residual, solution.steps, converged, finite)


def in_order(solve: Callable[..., Solution]) -> Callable[..., Solution]:
    """`solve(problem, *per_task)` with the tasks in an order of its own.

    Not even rounding then depends on the order that they have. They are sorted by norm,
    and between equal ones by the smallest and largest product with the others.
    """

    def solve_in_order(problem, *per_task):
        matrix, *others = problem
        keys = matrix.max(axis=1), matrix.min(axis=1), jnp.diagonal(matrix)
        order = jnp.lexsort((*keys, problem.exponents))
        problem = Equilibrated(matrix[order][:, order], *(x[order] for x in others))
        solution = solve(problem, *(x[order] for x in per_task))
        weights = jnp.zeros_like(solution.weights).at[order].set(solution.weights)
        return solution._replace(weights=weights)

    return solve_in_order


def solve_gramian(
    gramian: jax.Array,
    solve: Callable[..., Solution],
    *per_task: jax.Array,
    present: jax.Array | None = None,
) -> tuple[jax.Array, SolveInfo]:
    """Run a method's core on the equilibrated Gramian, with every guard around it.

    Args:
        gramian: the Gramian G, shape (K, K).
        solve: `solve(problem, *per_task)`, the core.
        *per_task: arrays of shape (K,).
        present: shape (K,), bool, the tasks that take part. None: all.
    """
    problem, finite = equilibrate(gramian, present)
    with jax.default_matmul_precision("highest"):
        solution = solve(problem, *per_task)
    return conclude(solution, problem, finite)
