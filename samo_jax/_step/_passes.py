"""`task_pass`: passes at the perturbed points, shared by tasks or one for each."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp

from samo_jax._labels import SHARED
from samo_jax._perturbations._base import Perturbation
from samo_jax._problem import Problem
from samo_jax._shared_points import SharedPoints, at_points
from samo_jax._step._devices import Devices
from samo_jax._step._method import tasks_share_points
from samo_jax._task_loop import is_unrolled
from samo_jax._tasks import LossFn
from samo_jax._tree import PyTree, accumulator_dtype, each, tree_norm

T = TypeVar("T")
# From a task to its loss, its gradient, and those of the samples.
TaskPass: TypeAlias = Callable[..., tuple[jax.Array, PyTree, list[PyTree]]]


def shared_points(
    perturbation: Perturbation,
    problem: Problem,
    context: PyTree,
    passes_at: Callable[..., T],
    *sample_loss_fns: LossFn,
) -> list[T]:
    """Passes of `loss_fn` and of samples, at the points that tasks share."""
    perturbations, index = cast(Callable, perturbation.shared_perturbations)(context)
    points = [problem.point(eps) for eps in perturbations]
    index = jnp.broadcast_to(index, len(problem.tasks))
    loss_fns = problem.loss_fn, *sample_loss_fns
    return [passes_at(fn, points, index) for fn in loss_fns]


def task_pass(
    perturbation: Perturbation, problem: Problem, context: PyTree
) -> TaskPass:
    """`i` to the loss, the gradient and those of samples, at the task's point."""
    samples = problem.sample_loss_fns
    unrolled = is_unrolled(problem.unroll, len(problem.tasks))
    passes_at: Callable[..., SharedPoints] = partial(at_points, unrolled=unrolled)
    if tasks_share_points(perturbation):
        shared = shared_points(perturbation, problem, context, passes_at, *samples)
        return lambda i: _loss_and_gradients(
            [points.value_and_gradient(i) for points in shared]
        )

    index = jnp.zeros(len(problem.tasks), jnp.int32)
    loss = perturbation.loss
    loss_fns = (problem.loss_fn, *samples) if loss is None else samples

    def pass_at_point(i):
        """The point is formed, used and dropped."""
        point = problem.point(perturbation.perturb(context, i), i)
        found = [passes_at(fn, [point], index).value_and_gradient(i) for fn in loss_fns]
        if loss is not None:
            of_point = jax.value_and_grad(
                lambda point: loss(problem, context, point, i)
            )
            found = [of_point(point), *found]
        return _loss_and_gradients(found)

    return pass_at_point


def present_heads(
    weighted_gradient: Callable[[jax.Array], PyTree],
    problem: Problem,
    devices: Devices,
    task_mask: jax.Array,
    finite: jax.Array,
) -> tuple[PyTree, jax.Array]:
    """Gradients of heads, and the present tasks: with all that is known finite.

    `weighted_gradient(w)` gives `sum_i w_i g_i`.
    """
    present = each(jnp.logical_and, task_mask, finite)
    heads = weighted_gradient(present.astype(accumulator_dtype()))
    own: dict[str, list[jax.Array]] = {name: [] for name in (*problem.tasks, SHARED)}
    leaves = zip(*map(jax.tree.leaves, (problem.labels, heads)), strict=True)
    for label, leaf in leaves:
        own[label].append(leaf)
    finite = jnp.stack([jnp.isfinite(tree_norm(own[name])) for name in problem.tasks])
    return heads, devices.all(present & finite)


def _loss_and_gradients(found):
    (loss, gradient), *samples = found
    return loss, gradient, [of_sample for _, of_sample in samples]
