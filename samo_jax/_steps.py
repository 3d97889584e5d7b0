"""The ways of one step: from a problem to a direction, its weights and new states."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from samo_jax._hyperparameters import check_count
from samo_jax._perturbations import Perturbation, Problem
from samo_jax._perturbations._base import (
    has_few_points,
    perturbed_gradients,
    perturbed_weighted_gradient,
)
from samo_jax._perturbations._streamed import streamed_gramian
from samo_jax._solvers import Combiner, Solver
from samo_jax._solvers._base import combiner_update, solver_update
from samo_jax._tasks import SHARED, Unroll, keep_shared
from samo_jax._tree import PyTree, accumulator_dtype


class Outcome(NamedTuple):
    """What a step has found.

    Attributes:
        combined: the direction of shared leaves (others: anything).
        own: each head's own gradient (shared leaves: anything).
        weights: shape (K,).
        present: which tasks took part, shape (K,), bool.
        solver_state: the new one.
        perturbation_state: the new one.
    """

    combined: PyTree
    own: PyTree
    weights: jax.Array
    present: jax.Array
    solver_state: Any
    perturbation_state: Any


class Method(NamedTuple):
    """Static settings of `multitask`, see there."""

    solver: Solver | Combiner
    perturbation: Perturbation
    axis_name: Any
    gramian_block: int | None

    def over_devices(self, tree: PyTree) -> PyTree:
        """The mean over the devices of `axis_name`."""
        return tree if self.axis_name is None else lax.pmean(tree, self.axis_name)

    def everywhere(self, present: jax.Array) -> jax.Array:
        """Whether a task is present on all devices."""
        return self.over_devices(present.astype(accumulator_dtype())) == 1

    def solver_args(
        self, problem: Problem, losses: jax.Array, present: jax.Array
    ) -> dict[str, Any]:
        """Losses (NaN where absent), who is present, and the user's extra arguments."""
        args = {"losses": losses.astype(accumulator_dtype()), **problem.extra_args}
        losses = jnp.where(present, args["losses"], jnp.nan)
        return args | {"losses": losses, "present": present}

    def weigh(
        self,
        problem: Problem,
        state: Any,
        gramian: jax.Array,
        losses: jax.Array,
        present: jax.Array,
    ) -> tuple[jax.Array, Any]:
        """Weights of the present tasks, and the solver's new state."""
        return solver_update(cast(Solver, self.solver))(
            gramian, state.solver_state, **self.solver_args(problem, losses, present)
        )


def check_gramian_block(method: Method, unroll: Unroll) -> None:
    """Raise unless `gramian_block` is None or a step by blocks is possible."""
    block = method.gramian_block
    if block is None:
        return
    check_count("gramian_block", block, "It is the number of gradients held at once.")
    if unroll:
        raise ValueError(
            f"`gramian_block` loops over tasks, got `unroll`={unroll!r}. Leave out one."
        )
    if isinstance(method.solver, Combiner):
        raise ValueError(
            "`gramian_block` is for solvers of the Gramian, got a Combiner, which "
            "needs all gradients at once. Leave it out."
        )
    if method.perturbation.finish is not None:
        raise ValueError(
            "`gramian_block` is for perturbations that leave the gradients alone, got "
            "one with `finish`, such as `memory_sam`'s. Leave it out."
        )


def take_step(
    method: Method, problem: Problem, state: Any, task_mask: jax.Array
) -> Outcome:
    """The cheapest way of a step that gives the method's direction."""
    solver, perturbation = method.solver, method.perturbation
    if (
        isinstance(solver, Solver)
        and solver.linear
        and has_few_points(perturbation)
        and perturbation.finish is None
        and not problem.sample_loss_fns
    ):
        return _by_weights(method, problem, state, task_mask)
    if method.gramian_block is not None:
        return _by_blocks(method, problem, state, task_mask)
    return _by_gradients(method, problem, state, task_mask)


def _by_gradients(
    method: Method, problem: Problem, state: Any, task_mask: jax.Array
) -> Outcome:
    """All K gradients first."""
    labels = problem.labels
    seen, present, perturbation_state = perturbed_gradients(
        method.perturbation,
        problem,
        state.perturbation_state,
        lambda finite, i: method.everywhere(task_mask[i] & finite),
    )
    seen = method.over_devices(seen)
    if method.axis_name is not None:
        perturbation_state = _average_floats(perturbation_state, method.axis_name)
    args = method.solver_args(problem, seen.losses, present)
    if seen.sample_grads:
        args["sample_grads"] = [
            keep_shared(grads, labels) for grads in seen.sample_grads
        ]
    if seen.clean_grads is not None:
        args["clean_grads"] = keep_shared(seen.clean_grads, labels)
    combined, weights, solver_state = combiner_update(method.solver)(
        keep_shared(seen.task_grads, labels), state.solver_state, **args
    )
    own = jax.tree.map(
        lambda label, grad: (
            None if label == SHARED else grad[problem.tasks.index(label)]
        ),
        labels,
        seen.task_grads,
    )
    return Outcome(combined, own, weights, present, solver_state, perturbation_state)


def _by_weights(
    method: Method, problem: Problem, state: Any, task_mask: jax.Array
) -> Outcome:
    """The weights first, then one backward pass for all tasks at a point."""
    losses, gradient = perturbed_weighted_gradient(
        method.perturbation, problem, state.perturbation_state
    )
    losses = method.over_devices(losses)
    present = task_mask & jnp.isfinite(losses)
    no_gramian = jnp.zeros((len(losses), len(losses)), losses.dtype)
    weights, solver_state = method.weigh(problem, state, no_gramian, losses, present)
    gradients = gradient(weights), gradient(present.astype(weights.dtype))
    combined, own = method.over_devices(gradients)
    return Outcome(
        combined, own, weights, present, solver_state, state.perturbation_state
    )


def _by_blocks(
    method: Method, problem: Problem, state: Any, task_mask: jax.Array
) -> Outcome:
    """The Gramian from a few gradients at a time, then their weighted sum."""
    if problem.sample_loss_fns:
        raise ValueError(
            "`sample_loss_fns` needs all gradients at once: leave out `gramian_block`."
        )
    seen, weighted_gradient = streamed_gramian(
        method.perturbation,
        problem,
        state.perturbation_state,
        cast(int, method.gramian_block),
        method.over_devices,
    )
    losses = method.over_devices(seen.losses)
    present = method.everywhere(task_mask & seen.finite)
    both = present[:, None] & present[None, :]
    weights, solver_state = method.weigh(
        problem, state, jnp.where(both, seen.gramian, 0), losses, present
    )
    combined, own = weighted_gradient(weights, present)
    return Outcome(
        combined, own, weights, present, solver_state, state.perturbation_state
    )


def _average_floats(state: Any, axis_name: Any) -> Any:
    return jax.tree.map(
        lambda leaf: (
            lax.pmean(leaf, axis_name)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else leaf
        ),
        state,
    )
