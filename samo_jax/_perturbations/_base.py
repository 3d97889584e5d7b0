"""What a perturbation is: where each task looks for its worst case."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._tasks import SHARED, LossFn, Unroll, map_tasks, task_value_and_gradient
from samo_jax._tree import PyTree, displace


class Problem(NamedTuple):
    """All that a perturbation may look at in one step.

    Attributes:
        loss_fn: params to K losses, as the user passed it to `update`.
        probe_loss_fn: the same for forward-only probes (default: `loss_fn`).
        params: theta.
        mean_grad: g0, the incoming updates, like `params`.
        labels: a pytree like `params` of "shared" or a task's name. Leaves with one
            label are one norm group.
        tasks: the K task names, in task order.
        step: shape (), int32, for schedules.
        key: this step's PRNG key, or None.
        unroll: how loops over tasks are to be run, see `multitask`.
    """

    loss_fn: LossFn
    probe_loss_fn: LossFn
    params: PyTree
    mean_grad: PyTree
    labels: Any
    tasks: tuple[str, ...]
    step: jax.Array
    key: jax.Array | None
    unroll: Unroll


class Perturbation(NamedTuple):
    """A sharpness method, as pure functions.

    Attributes:
        prepare: `prepare(problem, state) -> context`, once per step.
        perturb: `perturb(context, i) -> eps_i` like `params`, in the loop over tasks;
            `i` may be traced. Leaves of other tasks' heads are ignored.
        init: `init(params, num_tasks) -> state`, a pytree of fixed shapes and dtypes.
        finish: `finish(context, task_grads, state) -> (task_grads, state)`, once per
            step, with the K gradients at the perturbed points (leading task axis).
        needs_key: whether `prepare` draws random numbers.
    """

    prepare: Callable[[Problem, Any], Any]
    perturb: Callable[[Any, int | jax.Array], PyTree]
    init: Callable[[PyTree, int], Any] = lambda _params, _num_tasks: ()
    finish: Callable[[Any, PyTree, Any], tuple[PyTree, Any]] = (
        lambda _context, task_grads, state: (task_grads, state)
    )
    needs_key: bool = False


def perturbed_values_and_gradients(
    perturbation: Perturbation, problem: Problem, state: Any
) -> tuple[jax.Array, PyTree, Any]:
    """Losses and gradients at `theta + eps_i`, and the perturbation's new state.

    Each eps_i lives only inside its pass of the loop.
    """
    context = perturbation.prepare(problem, state)

    def value_and_gradient(i):
        eps = _own_leaves(perturbation.perturb(context, i), problem, i)
        point = displace(problem.params, eps)
        return task_value_and_gradient(problem.loss_fn, point, i)

    losses, task_grads = map_tasks(
        value_and_gradient, len(problem.tasks), problem.unroll
    )
    return losses, *perturbation.finish(context, task_grads, state)


def _own_leaves(eps: PyTree, problem: Problem, i: int | jax.Array):
    """`eps` on shared leaves and on the task's own head, zero on other heads."""

    def own(leaf, label):
        if label == SHARED:
            return leaf
        return jnp.where(problem.tasks.index(label) == i, leaf, jnp.zeros_like(leaf))

    return jax.tree.map(own, eps, problem.labels)
