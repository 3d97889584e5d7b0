"""`take_step`: from a problem to its direction, by the cheapest way."""

from collections.abc import Callable
from functools import partial

import jax

from samo_jax._by_task import ByTask
from samo_jax._combiners._types import Weighting
from samo_jax._problem import Problem
from samo_jax._step._all_gradients import step_by_all_gradients
from samo_jax._step._at_shared_points import step_at_shared_points
from samo_jax._step._by_representation import step_by_representation
from samo_jax._step._combine import settle
from samo_jax._step._gramian_blocks import step_by_gramian_blocks
from samo_jax._step._kept_weights import KeptWeights
from samo_jax._step._method import (
    Method,
    Outcome,
    States,
    check_samples,
    makes_task_gradients,
    takes_part,
    tasks_share_points,
)
from samo_jax._step._separate_parts import step_by_separate_parts
from samo_jax._task_loop import is_unrolled
from samo_jax._tree import PyTree


def take_step(
    method: Method,
    problem: Problem,
    states: States,
    task_mask: jax.Array,
    drawn: jax.Array | None,
    kept: KeptWeights | None,
) -> tuple[PyTree, Outcome, KeptWeights | None]:
    """The direction of one step, like the incoming updates, and what it is made of.

    Of the drawn tasks, where some are: the others are absent. Weights that are kept
    (None: none are) come out as they are after it.
    """
    check_samples(method, problem)
    step = method, problem, states, task_mask
    if method.separate_parts:
        return step_by_separate_parts(*step, kept)
    if _shares_passes(method, problem):
        return step_at_shared_points(*step, kept)
    outcome = _way(method, drawn)(*step)
    labels, like = problem.labels, problem.mean_grad
    return *settle(outcome, states, labels, like, problem.tasks), None


def _shares_passes(method: Method, problem: Problem) -> bool:
    """Whether tasks have their passes in common, up to the heads."""
    if not tasks_share_points(method.perturbation) or problem.sample_loss_fns:
        return False
    if not makes_task_gradients(method):
        return True
    if not isinstance(method.combiner, Weighting) or method.tasks_per_step is not None:
        return False
    if method.perturbation.finish is not None:
        return False
    settings = method.gramian_block, method.weights_every
    # Otherwise each task has passes of its own, with the gradient of its head.
    return (
        takes_part(method)
        or any(setting is not None for setting in settings)
        or not (
            is_unrolled(problem.unroll, len(problem.tasks))
            or isinstance(problem.loss_fn, ByTask)
        )
    )


def _way(method: Method, drawn: jax.Array | None) -> Callable[..., Outcome]:
    """The way of a step whose tasks have passes of their own."""
    if takes_part(method):
        return step_by_representation
    if method.gramian_block is not None:
        return step_by_gramian_blocks
    return partial(step_by_all_gradients, drawn=drawn)
