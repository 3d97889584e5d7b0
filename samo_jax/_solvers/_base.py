"""What a gradient combiner is, and the way from a pure function to a combiner."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._gramian import combine, gramian
from samo_jax._tree import PyTree, accumulator_dtype


class Solver(NamedTuple):
    """A gradient combiner: Gramian in, task weights out.

    A user's own combiner is one of these; nothing has to be registered.

    Attributes:
        init: `init(num_tasks) -> state`, a pytree of fixed shapes and dtypes.
        update: `update(gramian, state, *, losses, **extra_args) -> (weights, state)`
            with a `(K, K)` Gramian, `(K,)` losses and `(K,)` weights, jittable. Unknown
            `extra_args` are to be ignored.
        linear: whether the weights do not depend on the Gramian, which is then zero
            where the K gradients would not be needed otherwise.
    """

    init: Callable[[int], Any]
    update: Callable[..., tuple[jax.Array, Any]]
    linear: bool = False


class Combiner(NamedTuple):
    """A gradient combiner that needs the gradients themselves.

    Attributes:
        init: `init(params, num_tasks) -> state`, a pytree of fixed shapes and dtypes.
            `params` holds the shared leaves (None elsewhere).
        update: `update(task_grads, state, *, losses, **extra_args) -> (direction,
            weights, state)`, jittable: `task_grads` like `params` with a leading task
            axis, `direction` like `params` in the gradients' dtypes, `(K,)` losses and
            weights. Unknown `extra_args` are to be ignored.
    """

    init: Callable[[PyTree, int], Any]
    update: Callable[..., tuple[PyTree, jax.Array, Any]]


def check_combiner(solver: Any) -> None:
    """Raise unless it is a `Solver` or `Combiner`."""
    if not isinstance(solver, Solver | Combiner):
        raise ValueError(
            f"`solver` must be a samo_jax.Solver or Combiner, got {solver!r}. Call the "
            "factory: `samo_jax.fairgrad()`, not `samo_jax.fairgrad`."
        )


def combiner_update(
    solver: Solver | Combiner,
) -> Callable[..., tuple[PyTree, jax.Array, Any]]:
    """`Combiner.update`, for a solver too: Gramian to weights to direction."""
    if isinstance(solver, Combiner):
        return solver.update

    def update(task_grads, state, *, losses, **extra_args):
        shared = jax.tree.leaves(task_grads)
        num_tasks = losses.shape[0]
        products = gramian(shared) if shared else jnp.zeros((num_tasks, num_tasks))
        weights, state = solver.update(products, state, losses=losses, **extra_args)
        return combine(weights, task_grads), weights, state

    return update


class SolveInfo(NamedTuple):
    """How a solve went.

    Attributes:
        residual: shape (), the method's own optimality residual (its docstring says
            which), for the Gramian as it was given.
        steps: shape (), int32, linear systems solved.
        converged: shape (), bool, the given problem was solved to working precision.
            False where it has no finite solution (Pareto-stationary tasks) and the
            relative ridge decided, and where the Gramian is not finite.
        finite: shape (), bool, the Gramian was finite. False: the weights are the
            fallback.
    """

    residual: jax.Array
    steps: jax.Array
    converged: jax.Array
    finite: jax.Array


class SolverState(NamedTuple):
    """State of the Gramian solvers.

    Attributes:
        last_weights: shape (K,), the last weights of a finite Gramian (first: uniform).
        info: `SolveInfo` of the last update.
    """

    last_weights: jax.Array
    info: SolveInfo


def uniform_weights(num_tasks: int) -> jax.Array:
    """Equal weights that sum to one, shape (K,)."""
    return jnp.full((num_tasks,), 1 / num_tasks, accumulator_dtype())


def init_solver(num_tasks: int) -> SolverState:
    """Uniform weights, and nothing wrong."""
    info = SolveInfo(
        residual=jnp.zeros((), accumulator_dtype()),
        steps=jnp.zeros((), jnp.int32),
        converged=jnp.ones((), bool),
        finite=jnp.ones((), bool),
    )
    return SolverState(uniform_weights(num_tasks), info)


def keep_last(
    solved: tuple[jax.Array, SolveInfo], state: SolverState
) -> tuple[jax.Array, SolverState]:
    """What `update` returns: on a non-finite Gramian, the last good weights."""
    weights, info = solved
    weights = jnp.where(info.finite, weights, state.last_weights)
    return weights, SolverState(weights, info)


def gramian_solver(
    weights_fn: Callable[[jax.Array], tuple[jax.Array, SolveInfo]],
) -> Solver:
    """A `Solver` of a function of the Gramian alone."""

    def update(gramian, state, **extra_args):
        del extra_args
        return keep_last(weights_fn(gramian), state)

    return Solver(init_solver, update)
