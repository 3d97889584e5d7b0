"""`task_pass`: the perturbed points of a step, shared by tasks or one for each."""

from collections.abc import Callable
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp

from samo_jax._checks import check_like
from samo_jax._gradients import task_loss, task_value_and_gradient
from samo_jax._labels import mask_other_heads
from samo_jax._perturbations._base import Perturbation
from samo_jax._problem import Problem
from samo_jax._shared_points import SharedPoints, at_points
from samo_jax._task_loop import is_unrolled
from samo_jax._tasks import LossFn
from samo_jax._tree import PyTree, displace

# From a task to its loss, its gradient, and those of the samples.
TaskPass: TypeAlias = Callable[..., tuple[jax.Array, PyTree, list[PyTree]]]


def tasks_share_points(perturbation: Perturbation) -> bool:
    """Whether gradients are those of `loss_fn`, at fewer points than tasks."""
    return perturbation.shared_perturbations is not None and perturbation.loss is None


def shared_points(
    perturbation: Perturbation,
    problem: Problem,
    context: PyTree,
    *loss_fns: LossFn,
    unrolled: bool = False,
) -> list[SharedPoints]:
    """The points that tasks share, with the passes of each loss function."""
    perturbations, index = cast(Callable, perturbation.shared_perturbations)(context)
    points = [displace(problem.params, eps) for eps in perturbations]
    index = jnp.broadcast_to(index, len(problem.tasks))
    return [at_points(fn, points, index, unrolled=unrolled) for fn in loss_fns]


def task_pass(
    perturbation: Perturbation, problem: Problem, context: PyTree
) -> TaskPass:
    """`i` to the loss, the gradient and those of samples, at the task's point."""
    if tasks_share_points(perturbation):
        return _pass_at_shared_points(perturbation, problem, context)
    return _pass_at_own_point(perturbation, problem, context)


def _pass_at_shared_points(perturbation, problem, context):
    unrolled = is_unrolled(problem.unroll, len(problem.tasks))
    loss_fns = problem.loss_fn, *problem.sample_loss_fns
    points, *samples = shared_points(
        perturbation, problem, context, *loss_fns, unrolled=unrolled
    )
    return lambda i: (
        *points.value_and_gradient(i),
        [sample.value_and_gradient(i)[1] for sample in samples],
    )


def _pass_at_own_point(perturbation, problem, context):
    """The point is formed, used and dropped."""

    def loss(point, i):
        if perturbation.loss is None:
            return task_loss(problem.loss_fn, point, i)
        return perturbation.loss(problem, context, point, i)

    def values_and_gradients(i):
        eps = perturbation.perturb(context, i)
        remedy = "`Perturbation.perturb` returns eps_i, with all tasks' heads."
        check_like("eps", eps, "params", problem.params, remedy)
        eps = mask_other_heads(eps, problem.labels, problem.tasks, i)
        point = displace(problem.params, eps)
        samples = [
            task_value_and_gradient(loss_fn, point, i)[1]
            for loss_fn in problem.sample_loss_fns
        ]
        return *jax.value_and_grad(loss)(point, i), samples

    return values_and_gradients
