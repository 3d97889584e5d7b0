"""`task_pass`: passes at the perturbed points, shared by tasks or one for each."""

from collections.abc import Callable
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp

from samo_jax._perturbations._base import Perturbation
from samo_jax._problem import Problem
from samo_jax._shared_points import SharedPoints, at_points
from samo_jax._step._method import tasks_share_points
from samo_jax._task_loop import is_unrolled
from samo_jax._tasks import LossFn
from samo_jax._tree import PyTree

# From a task to its loss, its gradient, and those of the samples.
TaskPass: TypeAlias = Callable[..., tuple[jax.Array, PyTree, list[PyTree]]]


def shared_points(
    perturbation: Perturbation,
    problem: Problem,
    context: PyTree,
    *sample_loss_fns: LossFn,
    unrolled: bool = False,
) -> list[SharedPoints]:
    """The points that tasks share, with the passes of `loss_fn` and of samples."""
    perturbations, index = cast(Callable, perturbation.shared_perturbations)(context)
    points = [problem.point(eps) for eps in perturbations]
    index = jnp.broadcast_to(index, len(problem.tasks))
    loss_fns = problem.loss_fn, *sample_loss_fns
    return [at_points(fn, points, index, unrolled=unrolled) for fn in loss_fns]


def task_pass(
    perturbation: Perturbation, problem: Problem, context: PyTree
) -> TaskPass:
    """`i` to the loss, the gradient and those of samples, at the task's point."""
    samples = problem.sample_loss_fns
    unrolled = is_unrolled(problem.unroll, len(problem.tasks))
    if tasks_share_points(perturbation):
        shared = shared_points(
            perturbation, problem, context, *samples, unrolled=unrolled
        )
        return lambda i: _values_and_gradients(shared, i)

    index = jnp.zeros(len(problem.tasks), jnp.int32)
    loss = perturbation.loss
    loss_fns = (problem.loss_fn, *samples) if loss is None else samples

    def pass_at_point(i):
        """The point is formed, used and dropped."""
        point = problem.point(perturbation.perturb(context, i), i)
        points = [at_points(fn, [point], index, unrolled=unrolled) for fn in loss_fns]
        if loss is not None:
            passes = [jax.vjp(lambda point: loss(problem, context, point, i), point)]
            points = [SharedPoints(index, [], lambda _i: passes, False), *points]
        return _values_and_gradients(points, i)

    return pass_at_point


def _values_and_gradients(points, i):
    loss, gradient = points[0].value_and_gradient(i)
    return loss, gradient, [sample.value_and_gradient(i)[1] for sample in points[1:]]
