"""`pcd`: the primary task's gradient, bent as far as the secondary tasks demand."""

from numbers import Integral
from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from samo_jax._checks import TaskValues, Vector, as_numbers, check_share
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.gramian._gramian_weighting import (
    SolverState,
    init_solver_state,
    or_last_weights,
)
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
from samo_jax._tasks import per_task, present_tasks
from samo_jax._tree import accumulator_dtype, safe_divide

_ROUNDINGS = 64


@overload
def pcd_weights(
    gramian: ArrayLike,
    primary: int = 0,
    tau: Vector = 0.02,
    *,
    squared_norms: ArrayLike | None = None,
    present: ArrayLike | None = None,
    return_info: Literal[False] = False,
) -> jax.Array: ...
@overload
def pcd_weights(
    gramian: ArrayLike,
    primary: int = 0,
    tau: Vector = 0.02,
    *,
    squared_norms: ArrayLike | None = None,
    present: ArrayLike | None = None,
    return_info: Literal[True],
) -> tuple[jax.Array, SolveInfo]: ...
def pcd_weights(
    gramian: ArrayLike,
    primary: int = 0,
    tau: Vector = 0.02,
    *,
    squared_norms: ArrayLike | None = None,
    present: ArrayLike | None = None,
    return_info: bool = False,
) -> jax.Array | tuple[jax.Array, SolveInfo]:
    """Weights of the direction nearest to the primary gradient that serves the others.

    With `h_i = g_i / sqrt(v_i)` and p the primary task,

    `dbar = argmin_d ||d - h_p||` subject to `<h_j, d> >= tau_j ||h_j||^2` for all other
    tasks j, and `d = ||g_p|| dbar / ||dbar||`: every secondary task gets the share tau
    of the progress that a step along its own gradient would make. tau = 0 only keeps
    them from harm, and then no task conflicts with d; with tau > 0 the primary may,
    where a secondary gradient is nearly opposite.

    Solved exactly, as one non-negative QP. Demands that no direction meets (two
    secondary gradients that are opposite, tau > 0) are dropped: d is g_p, and
    `converged` is False. d is zero where the primary gradient is, or where it is
    opposite to what tau = 0 allows. Where the primary task is absent, the first that is
    present takes its place. The line of d does not change when single gradients
    are rescaled with their v_i. Tasks with a zero gradient are left out (weight 0).
    All-zero and non-finite Gramians give uniform weights.

    Args:
        gramian: G, shape (K, K), inner products of the task gradients.
        primary: p, index of the primary task.
        tau: share of progress in [0, 1], a number or shape (K,), of which the primary
            task's does not matter.
        squared_norms: v, shape (K,), positive, such as running averages of `||g_i||^2`.
            None: those of G.
        present: shape (K,), bool, the tasks that take part; others get the weight 0.
            None: all.
        return_info: also return a `SolveInfo`, whose residual is the violation of the
            QP's optimality conditions, relative to its largest linear term.

    Returns:
        w, shape (K,), or `(w, info)`.

    Raises:
        ValueError: if `gramian` is not square, `primary` no index of a task, or `tau`
            not in [0, 1].

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> gramian = jnp.array([[1.0, -0.6], [-0.6, 1.0]])
        >>> print(samo_jax.pcd_weights(gramian, tau=0.0))
        [1.25 0.75]

    References:
        Varam and AlHajri, `Not All Objectives Are Born Equal: Priority-Constrained
        Descent for Hierarchical Multi-Objective Optimization
        <https://arxiv.org/abs/2606.29521>`_, 2026
    """
    _check_tau(tau)
    gramian = check_gramian(gramian)
    index = _index_of(primary, len(gramian), None)
    if squared_norms is None:
        squared_norms = jnp.diagonal(gramian)
    weights, info = _solve(gramian, index, tau, squared_norms, present)
    return (weights, info) if return_info else weights


def _check_tau(tau):
    if isinstance(tau, jax.core.Tracer):
        return
    values = as_numbers("tau", tau)
    if not np.all((values >= 0) & (values <= 1)):
        raise ValueError(
            f"`tau` must be in [0, 1], got {tau!r}. 0 only keeps secondary tasks from "
            "harm."
        )


def _index_of(primary, num_tasks, tasks):
    """The primary task's index, by its name too where the names are known."""
    if isinstance(primary, str) and tasks is None:
        raise ValueError(
            f"`primary` must be an index where no task has a name, got {primary!r}. "
            "`multitask` passes `tasks`; call update(..., tasks=names)."
        )
    if isinstance(primary, str) and primary in tasks:
        return tasks.index(primary)
    whole = isinstance(primary, Integral) and not isinstance(primary, bool)
    index = int(primary) if whole else -1
    if not 0 <= index < num_tasks:
        known = f", or one of {', '.join(tasks)}" if tasks else ""
        raise ValueError(
            f"`primary` must be the index of one of {num_tasks} tasks{known}, got "
            f"{primary!r}. It is the task that the others must not hold up."
        )
    return index


@jax.jit
def _solve(gramian, primary, tau, squared_norms, present):
    num_tasks = len(gramian)
    present = present_tasks(present, num_tasks)
    tasks, first = jnp.arange(num_tasks), jnp.argmax(present)
    return solve_gramian(
        gramian,
        in_order(_bent),
        jnp.where(present[primary], tasks == primary, tasks == first),
        per_task("tau", tau, num_tasks, 0),
        per_task("squared_norms", squared_norms, num_tasks, 1),
        present=present,
    )


def _bent(problem: Equilibrated, is_primary, tau, squared_norms) -> Solution:
    # dbar = sum_i y_i 2^-k_i g_i with r_i = 2^k_i / sqrt(v_i), near one, and y_p = r_p:
    # the dual of the projection is the QP `min y'Cy / 2 - c'y` over the others' y >= 0,
    # `c_j = tau_j r_j C_jj - r_p C_jp`.
    matrix, exponents, active, _ = problem
    dtype = matrix.dtype
    eps = float(jnp.finfo(dtype).eps)
    roots = jnp.sqrt(jnp.maximum(squared_norms, jnp.finfo(dtype).tiny))
    ratios = jnp.where(active, jnp.ldexp(1 / roots, exponents), 1)
    start = jnp.where(is_primary & active, ratios, 0)
    others = active & ~is_primary
    demands = jnp.where(others, tau * ratios * jnp.diagonal(matrix), 0)

    identity = jnp.eye(len(tau), dtype=dtype)
    among = jnp.where(others[:, None] & others[None, :], matrix, identity)
    linear = jnp.where(others, demands - matvec(matrix, start)[0], 0)
    solution = nonnegative_qp(among, linear)
    y = jnp.where(others, solution.weights, 0) + start

    high, low = matvec(matrix, y)
    # Where no direction meets all demands, one of them is met with nothing.
    dropped = jnp.any((demands > 0) & (high + low < demands / 2))
    y = jnp.where(dropped, start, y)
    high, low = matvec(matrix, y)
    square = y @ high + y @ low
    known = square > _ROUNDINGS * eps * (y @ (jnp.abs(matrix) @ y))
    size = jnp.sum(jnp.where(is_primary & active, jnp.diagonal(matrix), 0))
    scale = jnp.where(known, jnp.sqrt(safe_divide(size, square)), 0)
    shift = jnp.sum(exponents, where=is_primary, dtype=exponents.dtype) - exponents
    return solution._replace(
        weights=jnp.ldexp(scale * y, shift),
        converged=solution.converged & ~dropped & (known | ~jnp.any(start > 0)),
    )


class PCDState(NamedTuple):
    """State of `pcd`.

    Attributes:
        average: shape (K,), averages of the squared norms, uncorrected; 0 at first.
        count: shape (K,), int32, number of gradients in each average.
        solver_state: state of the last solve.
    """

    average: jax.Array
    count: jax.Array
    solver_state: SolverState


@named
@by_name("tau")
def pcd(
    primary: int | str = 0, tau: TaskValues = 0.02, *, decay: float = 0.999
) -> Weighting:
    """PCD: the primary task first, the others as far as `tau` demands.

    `pcd_weights` whose v_i are running averages of `||g_i||^2` with a corrected start.
    (The reference adds 1e-8 to them, which rules for small gradients.)

    Args:
        primary: the primary task, its index or, in `multitask`, its name.
        tau: share of its own progress that each secondary task is owed, in [0, 1]: a
            number, or one per task, shape (K,) or by name (the primary task's does not
            matter).
        decay: decay of the averages, in [0, 1]. 0 takes the norms of each step.

    Returns:
        A `Weighting`. Averages of tasks that are absent, or whose gradient is 0, wait.
        On a non-finite Gramian it keeps its last weights; `SolverState.info` says so.

    Raises:
        ValueError: if `tau` or `decay` is not in [0, 1], or `primary` is neither an
            index nor a name; in `init` and `update`, if there is no such task.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.pcd("accuracy", tau=0.0)
        >>> gramian = jnp.array([[1.0, -0.6], [-0.6, 1.0]])
        >>> weights, _ = weighting.update(
        ...     gramian, weighting.init(2), tasks=("accuracy", "sparsity")
        ... )
        >>> print(weights)
        [1.25 0.75]

    References:
        Varam and AlHajri, `Not All Objectives Are Born Equal: Priority-Constrained
        Descent for Hierarchical Multi-Objective Optimization
        <https://arxiv.org/abs/2606.29521>`_, 2026
    """
    _check_tau(tau)
    check_share("decay", decay, "0 takes the norms of each step.")

    def init(num_tasks):
        if not isinstance(primary, str):
            _index_of(primary, num_tasks, None)
        per_task("tau", tau, num_tasks, 0)
        return PCDState(
            jnp.zeros((num_tasks,), accumulator_dtype()),
            jnp.zeros((num_tasks,), jnp.int32),
            init_solver_state(num_tasks),
        )

    def update(gramian, state, *, present=None, tasks=None, **extra_args):
        del extra_args
        gramian = check_gramian(gramian)
        index = _index_of(primary, len(gramian), tasks)
        squares = jnp.diagonal(gramian)
        seen = present_tasks(present, len(gramian)) & (squares > 0)
        seen &= jnp.all(jnp.isfinite(gramian))
        kept = jnp.asarray(decay, squares.dtype)
        average = kept * state.average + (1 - kept) * squares
        average = jnp.where(seen, average, state.average)
        count = jnp.where(seen, optax.safe_increment(state.count), state.count)
        corrected = safe_divide(average, 1 - kept ** count.astype(kept.dtype))
        solved = _solve(gramian, index, tau, corrected, present)
        weights, solver_state = or_last_weights(solved, state.solver_state, present)
        return weights, PCDState(average, count, solver_state)

    return Weighting(init, update)
