"""What a gradient combiner is, and the way from a pure function to a combiner."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._faults import fill_in, names_present, share_out
from samo_jax._gramian import combine, gramian
from samo_jax._solvers._arguments import per_task, present_tasks, uniform_weights
from samo_jax._tree import (
    PyTree,
    accumulator_dtype,
    cast_like,
    keep,
    scale_leaves,
)


class Solver(NamedTuple):
    """A gradient combiner: Gramian in, task weights out.

    A user's own combiner is one of these; nothing has to be registered.

    Attributes:
        init: `init(num_tasks) -> state`, a pytree of fixed shapes and dtypes.
        update: `update(gramian, state, *, losses, present, **extra_args) -> (weights,
            state)` with a `(K, K)` Gramian, `(K,)` losses and `(K,)` weights, jittable.
            Unknown `extra_args` are to be ignored. `present`, shape (K,), bool (None:
            all), says which tasks take part: an absent one has zeros in the Gramian, a
            NaN for its loss, and gets the weight 0. An update that does not name
            `present` gets the mean of the other losses in its place, and what weight
            it gives to absent tasks goes to the others in proportion.
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
        update: `update(task_grads, state, *, losses, present, **extra_args) ->
            (direction, weights, state)`, jittable: `task_grads` like `params` with a
            leading task axis, `direction` like `params` in the gradients' dtypes,
            `(K,)` losses and weights. Unknown `extra_args` are to be ignored.
            `present` is as in `Solver`: an absent task has zero gradients. Of an update
            that does not name it, the direction grows with the others' weights.
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


def solver_update(solver: Solver) -> Callable[..., tuple[jax.Array, Any]]:
    """`Solver.update`, called with `present` whether the method names it or not."""
    if names_present(solver.update):
        return solver.update

    def update(gramian, state, *, present=None, **extra_args):
        weights, state = solver.update(gramian, state, **_filled(extra_args, present))
        if present is not None:
            weights = per_task("weights", weights, len(present), 0)
        return share_out(weights, present)[0], state

    return update


def combiner_update(
    solver: Solver | Combiner,
) -> Callable[..., tuple[PyTree, jax.Array, Any]]:
    """`Combiner.update`, for a solver too: Gramian to weights to direction.

    It may be called with `present` whether the method names it or not.
    """
    if isinstance(solver, Solver):
        return _combining(solver_update(solver))
    if names_present(solver.update):
        return solver.update

    def update(task_grads, state, *, present=None, **extra_args):
        direction, weights, state = solver.update(
            task_grads, state, **_filled(extra_args, present)
        )
        weights, growth = share_out(weights, present)
        grown = scale_leaves(direction, lambda _leaf: growth)
        return cast_like(grown, direction), weights, state

    return update


def _combining(weigh: Callable[..., tuple[jax.Array, Any]]):
    def update(task_grads, state, *, losses, **extra_args):
        shared = jax.tree.leaves(task_grads)
        num_tasks = losses.shape[0]
        products = gramian(shared) if shared else jnp.zeros((num_tasks, num_tasks))
        weights, state = weigh(products, state, losses=losses, **extra_args)
        return combine(weights, task_grads), weights, state

    return update


def _filled(extra_args: dict[str, Any], present: jax.Array | None) -> dict[str, Any]:
    """The arguments, with a loss for each task that is absent."""
    if present is None or extra_args.get("losses") is None:
        return extra_args
    return extra_args | {"losses": fill_in(extra_args["losses"], present)}


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
    solved: tuple[jax.Array, SolveInfo],
    state: SolverState,
    present: jax.Array | None = None,
) -> tuple[jax.Array, SolverState]:
    """What `update` returns: on a non-finite Gramian, the last good weights.

    Absent tasks get the weight 0, and their last weights wait.
    """
    weights, info = solved
    present = present_tasks(present, len(weights))
    last = jnp.where(info.finite & present, weights, state.last_weights)
    return keep(present, last), SolverState(last, info)


def gramian_solver(
    weights_fn: Callable[..., tuple[jax.Array, SolveInfo]],
) -> Solver:
    """A `Solver` of `weights_fn(gramian, present)`, a function of these alone."""

    def update(gramian, state, *, present=None, **extra_args):
        del extra_args
        return keep_last(weights_fn(gramian, present), state, present)

    return Solver(init_solver, update)
