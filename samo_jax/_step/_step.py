"""`take_step`: from a problem to its direction, by the cheapest way."""

from collections.abc import Callable
from functools import partial

import jax

from samo_jax._problem import Problem
from samo_jax._step._all_gradients import step_by_all_gradients
from samo_jax._step._by_part import step_by_part
from samo_jax._step._combine import settle
from samo_jax._step._gramian_blocks import step_by_gramian_blocks
from samo_jax._step._kept_weights import KeptWeights, step_with_kept_weights
from samo_jax._step._method import (
    Method,
    Outcome,
    States,
    check_samples,
    makes_task_gradients,
    takes_part,
)
from samo_jax._step._separate_parts import step_by_separate_parts
from samo_jax._step._weights_first import step_by_weights_first
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
    if method.separate_parts:
        return step_by_separate_parts(method, problem, states, task_mask, kept)
    if drawn is None:
        way = _way(method, problem)
    else:
        way = partial(step_by_all_gradients, drawn=drawn)
    if kept is not None:
        return step_with_kept_weights(way, method, problem, states, task_mask, kept)
    outcome = way(method, problem, states, task_mask)
    return *settle(outcome, states, problem.labels, problem.mean_grad), None


def _way(method: Method, problem: Problem) -> Callable[..., Outcome]:
    """The cheapest way that gives the method's direction."""
    if not makes_task_gradients(method) and not problem.sample_loss_fns:
        return step_by_weights_first
    if takes_part(method):
        return step_by_part
    if method.gramian_block is not None:
        return step_by_gramian_blocks
    return step_by_all_gradients
