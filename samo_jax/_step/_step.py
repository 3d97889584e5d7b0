"""`take_step`: from a problem to its direction, by the cheapest way."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from samo_jax._combiners._types import Weighting
from samo_jax._labels import SHARED
from samo_jax._problem import Problem
from samo_jax._step._all_gradients import step_by_all_gradients
from samo_jax._step._gramian_blocks import step_by_gramian_blocks
from samo_jax._step._method import Method, Outcome, States
from samo_jax._step._passes import tasks_share_points
from samo_jax._step._weights_first import step_by_weights_first
from samo_jax._tree import PyTree, all_finite, select, zero_unless


def take_step(
    method: Method,
    problem: Problem,
    states: States,
    task_mask: jax.Array,
    drawn: jax.Array | None,
) -> tuple[PyTree, Outcome]:
    """The direction of one step, like the incoming updates, and what it is made of.

    Of the drawn tasks, where some are: the others are absent.

    Where it is not finite it is zero, without a task that took part; without one the
    states stay.
    """
    if drawn is None:
        way = _way(method, problem)
    else:
        way = partial(step_by_all_gradients, drawn=drawn)
    outcome = way(method, problem, states, task_mask)

    def pick(label, incoming, shared, head):
        return (shared if label == SHARED else head).astype(incoming.dtype)

    direction = jax.tree.map(
        pick, problem.labels, problem.mean_grad, outcome.shared, outcome.heads
    )
    finite = all_finite(direction)
    present = outcome.present & finite
    return jax.tree.map(partial(zero_unless, finite), direction), outcome._replace(
        weights=zero_unless(finite, outcome.weights),
        present=present,
        states=select(jnp.any(present), outcome.states, states),
    )


def _way(method: Method, problem: Problem) -> Callable[..., Outcome]:
    """The cheapest way that gives the method's direction."""
    if (
        isinstance(method.combiner, Weighting)
        and not method.combiner.needs_gramian
        and tasks_share_points(method.perturbation)
        and method.perturbation.finish is None
        and not problem.sample_loss_fns
    ):
        return step_by_weights_first
    if method.gramian_block is not None:
        return step_by_gramian_blocks
    return step_by_all_gradients
