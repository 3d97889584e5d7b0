"""`step_by_separate_parts`: loss parts and flat parts, at points that tasks share."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from samo_jax._combiners._types import Weighting, weighting_update
from samo_jax._problem import Problem
from samo_jax._representation import PartGradients, gradients_by_nothing
from samo_jax._step._by_part import gramian_of_rows, part_passes
from samo_jax._step._combine import settle
from samo_jax._step._kept_weights import (
    KeptWeights,
    growth_factor,
    kept_weighting,
    renew_or_go_on,
    without_gradients,
)
from samo_jax._step._method import Method, Outcome, States
from samo_jax._step._passes import present_heads, shared_points
from samo_jax._tasks import uniform_weights
from samo_jax._tree import PyTree, as_floats, zero_unless

_ROUNDINGS = 100


class SeparateState(NamedTuple):
    """State of the combiner of `f_mtl`.

    Attributes:
        loss_state: state of the combiner for the loss parts.
        flat_state: state of the combiner for the flat parts.
        flat_weights: shape (K,), the last weights of the flat parts. (Those of the loss
            parts are `MultitaskState.weights`.)
    """

    loss_state: Any
    flat_state: Any
    flat_weights: jax.Array


def init_parts(combiner: Weighting, num_tasks: int) -> SeparateState:
    """The first state. Its parts are two buffers: it may be donated."""
    first, second = (combiner.init(num_tasks) for _ in range(2))
    return SeparateState(first, second, uniform_weights(num_tasks))


class _Passes(NamedTuple):
    """Passes at theta and at theta + eps, without absent tasks."""

    clean: PartGradients
    perturbed: PartGradients
    heads: PyTree
    present: jax.Array
    args: dict[str, Any]


def step_by_separate_parts(
    method: Method,
    problem: Problem,
    states: States,
    task_mask: jax.Array,
    kept: KeptWeights | None,
) -> tuple[PyTree, Outcome, KeptWeights | None]:
    """`d = J(theta)'w + (J(theta + eps) - J(theta))'v`, eps common to all tasks.

    w and v are the combiner's, of the Gramians of both parts. Each part gets the length
    that it would have if all gradients were longer or shorter alike than the Gramian
    has them: it is an older one, or that of a part of the model. In steps that go on
    with kept weights there are four backward passes for any K.
    """
    step = method, problem, states, task_mask
    if kept is None:
        return *_renew(*step)[:2], None
    branches = partial(_renew, *step), partial(_go_on, *step, kept)
    return renew_or_go_on(*branches, method, task_mask, kept)


def _renew(method: Method, problem: Problem, states: States, task_mask: jax.Array):
    """A step that takes both weights, by Gramians of both parts."""
    combiner = cast(Weighting, method.combiner)
    passes = _take_passes(
        method, problem, states, task_mask, part_passes(method, problem)
    )
    clean, perturbed = passes.clean.rows, passes.perturbed.rows
    flat = [
        q._replace(values=q.values - g.values)
        for q, g in zip(perturbed, clean, strict=True)
    ]
    gramians = [
        gramian_of_rows(rows, len(problem.tasks), method.devices)
        for rows in (clean, flat)
    ]
    found = [
        weighting_update(combiner)(gramian, state, **passes.args)
        for gramian, state in zip(gramians, states.combiner[:2], strict=True)
    ]
    weights, combiner_states = zip(*found, strict=True)
    lengths = [*map(_length, weights, gramians)]
    direction, outcome = _conclude(
        method, problem, states, passes, weights, lengths, gramians, combiner_states
    )
    kept = KeptWeights(
        age=jnp.zeros((), jnp.int32),
        kept_tasks=outcome.present,
        kept_weights=zero_unless(jnp.any(outcome.present), jnp.stack(weights)),
        kept_gramian=jnp.stack(gramians),
        kept_length=jnp.stack(lengths),
    )
    return direction, outcome, kept


def _go_on(
    method: Method,
    problem: Problem,
    states: States,
    task_mask: jax.Array,
    kept: KeptWeights,
):
    """A step by kept weights, each part as long as its own growth makes it."""
    combiner = cast(Weighting, method.combiner)
    passes = _take_passes(method, problem, states, task_mask, gradients_by_nothing)
    combiner_states, gramians = states.combiner[:2], kept.kept_gramian
    weights = []
    for state, w, gramian in zip(
        combiner_states, kept.kept_weights, gramians, strict=True
    ):
        of_part = kept._replace(kept_weights=w, kept_gramian=gramian)
        update = kept_weighting(combiner, of_part).update
        weights.append(update(gramian, state, **passes.args)[0])
    direction, outcome = _conclude(
        method,
        problem,
        states,
        passes,
        weights,
        kept.kept_length,
        gramians,
        combiner_states,
    )
    return direction, outcome, kept._replace(age=kept.age + 1)


def _take_passes(
    method: Method,
    problem: Problem,
    states: States,
    task_mask: jax.Array,
    passes_at: Callable[..., PartGradients],
) -> _Passes:
    devices, perturbation = method.devices, method.perturbation
    index = jnp.zeros(len(problem.tasks), jnp.int32)
    clean = passes_at(problem.loss_fn, [problem.params], index)
    present = devices.all(task_mask & clean.are_finite())
    shares = present / jnp.maximum(jnp.sum(present), 1)
    mean_grad = devices.mean(clean.only(present).weighted_gradient(shares))
    context = perturbation.prepare(
        problem._replace(mean_grad=mean_grad), states.perturbation
    )
    (perturbed,) = shared_points(perturbation, problem, context, passes_at)
    present &= devices.all(perturbed.are_finite())
    heads, present = present_heads(
        perturbed.only(present).weighted_gradient, problem, devices, present
    )
    args = problem.combiner_args(devices.mean(perturbed.losses), present)
    return _Passes(clean.only(present), perturbed.only(present), heads, present, args)


def _length(weights: jax.Array, gramian: jax.Array) -> jax.Array:
    """The length of `J'w` by the Gramian, and 0 where that is rounding."""

    def square_of(w, products):
        return jnp.linalg.multi_dot([w, products, w], precision="highest")

    square = square_of(weights, gramian)
    terms = square_of(jnp.abs(weights), jnp.abs(gramian))
    is_known = square > _ROUNDINGS * jnp.finfo(square.dtype).eps * terms
    return jnp.sqrt(zero_unless(is_known, square))


def _conclude(
    method: Method,
    problem: Problem,
    states: States,
    passes: _Passes,
    weights: Sequence[jax.Array],
    lengths: Iterable[jax.Array],
    gramians: Sequence[jax.Array] | jax.Array,
    combiner_states: Sequence[Any],
) -> tuple[PyTree, Outcome]:
    """The direction, its parts as long as the combiner makes them for these gradients.

    Weights, lengths of the directions that they are for, Gramians and states are those
    of loss parts and flat parts.
    """
    devices, combiner = method.devices, cast(Weighting, method.combiner)

    def sum_of(gradients, weights):
        return as_floats(problem.shared(gradients.weighted_gradient(weights)))

    (w, v), (loss_state, flat_state) = weights, combiner_states
    perturbed, clean = (sum_of(at, v) for at in (passes.perturbed, passes.clean))
    flat_part = jax.tree.map(jnp.subtract, perturbed, clean)
    parts = devices.mean([sum_of(passes.clean, w), flat_part])
    of_loss, of_flat = (
        growth_factor(combiner, part, length)
        for part, length in zip(parts, lengths, strict=True)
    )
    outcome = Outcome(
        shared=jax.tree.map(lambda a, b: of_loss * a + of_flat * b, *parts),
        heads=devices.mean(passes.heads),
        weights=of_loss * w,
        present=passes.present,
        states=states._replace(
            combiner=SeparateState(loss_state, flat_state, of_flat * v)
        ),
        losses=passes.args["losses"],
        gramian=gramians[0],
    )
    direction, outcome = settle(outcome, states, problem.labels, problem.mean_grad)
    return direction, without_gradients(outcome)
