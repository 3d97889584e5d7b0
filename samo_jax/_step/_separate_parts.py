"""`step_by_separate_parts`: loss parts and flat parts, at points that tasks share."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from samo_jax._combiners._types import Weighting, weighting_update
from samo_jax._part_gradients import Sweep
from samo_jax._problem import Problem
from samo_jax._step._at_shared_points import (
    gramian_of_sweep,
    part_passes,
    sums_and_sweep,
)
from samo_jax._step._combine import settle
from samo_jax._step._kept_weights import (
    KeptWeights,
    growth_factor,
    kept_after,
    known_weights,
    take_or_go_on,
)
from samo_jax._step._method import Method, Outcome, States
from samo_jax._step._passes import present_heads, shared_points
from samo_jax._tasks import uniform_weights
from samo_jax._tree import PyTree, as_floats, tree_norm, zero_unless

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
    combiner, devices = cast(Weighting, method.combiner), method.devices
    perturbation, is_kept = method.perturbation, kept is not None
    passes_at = part_passes(method, problem)
    index = jnp.zeros(len(problem.tasks), jnp.int32)
    at_theta = passes_at(problem.loss_fn, [problem.params], index)
    clean, finite, clean_sweep = sums_and_sweep(at_theta, is_kept=is_kept)
    there = devices.all(task_mask & finite)
    shares = there / jnp.maximum(jnp.sum(there), 1)
    mean_grad = devices.mean(clean(shares))
    context = perturbation.prepare(
        problem._replace(mean_grad=mean_grad), states.perturbation
    )
    (at_point,) = shared_points(perturbation, problem, context, passes_at)
    perturbed, finite, perturbed_sweep = sums_and_sweep(at_point, is_kept=is_kept)
    heads, there = present_heads(perturbed, problem, devices, there, finite)
    losses = devices.mean(at_point.losses)

    def take():
        sweeps = clean_sweep(), perturbed_sweep()
        present = there & devices.all(sweeps[0].finite & sweeps[1].finite)
        gramians = [
            gramian_of_sweep(part, present, devices)
            for part in (sweeps[0], _difference(*sweeps))
        ]
        args = problem.combiner_args(losses, present)
        found = [
            weighting_update(combiner)(gramian, state, **args)
            for gramian, state in zip(gramians, states.combiner[:2], strict=True)
        ]
        weights, combiner_states = zip(*found, strict=True)
        lengths = map(_length, weights, gramians)
        return (
            present,
            *map(jnp.stack, (weights, gramians, [*lengths])),
            combiner_states,
        )

    def go_on(kept):
        args = problem.combiner_args(losses, there)
        parts = kept.kept_weights, kept.kept_gramian, states.combiner[:2]
        weights = [
            known_weights(
                combiner,
                kept._replace(kept_weights=weights, kept_gramian=gramian),
                state,
                args,
            )
            for weights, gramian, state in zip(*parts, strict=True)
        ]
        lengths = kept.kept_length
        return there, jnp.stack(weights), kept.kept_gramian, lengths, parts[-1]

    is_new, found = take_or_go_on(take, go_on, method, task_mask, kept)
    present, (w, v), gramians, lengths, (loss_state, flat_state) = found

    def sum_of(weighted_gradient, weights):
        return as_floats(problem.shared(weighted_gradient(weights)))

    flat_part = jax.tree.map(jnp.subtract, sum_of(perturbed, v), sum_of(clean, v))
    parts = devices.mean([sum_of(clean, w), flat_part])
    of_loss, of_flat = (
        growth_factor(combiner, tree_norm(part), length)
        for part, length in zip(parts, lengths, strict=True)
    )
    outcome = Outcome(
        shared=jax.tree.map(lambda a, b: of_loss * a + of_flat * b, *parts),
        heads=devices.mean(heads),
        weights=of_loss * w,
        present=present,
        states=states._replace(
            combiner=SeparateState(loss_state, flat_state, of_flat * v)
        ),
        losses=problem.combiner_args(losses, present)["losses"],
        gramian=gramians[0],
    )
    direction, outcome = settle(
        outcome, states, problem.labels, problem.mean_grad, problem.tasks
    )
    weights = jnp.stack([w, v])
    kept = kept_after(kept, is_new, outcome.present, weights, gramians, lengths)
    return direction, outcome, kept


def _difference(clean: Sweep, perturbed: Sweep) -> Sweep:
    """The gradients of the flat parts."""
    rows = [
        q._replace(values=q.values - g.values)
        for q, g in zip(perturbed.rows, clean.rows, strict=True)
    ]
    return perturbed._replace(rows=rows)


def _length(weights: jax.Array, gramian: jax.Array) -> jax.Array:
    """The length of `J'w` by the Gramian, and 0 where that is rounding."""

    def square_of(w, products):
        return jnp.linalg.multi_dot([w, products, w], precision="highest")

    square = square_of(weights, gramian)
    terms = square_of(jnp.abs(weights), jnp.abs(gramian))
    is_known = square > _ROUNDINGS * jnp.finfo(square.dtype).eps * terms
    return jnp.sqrt(zero_unless(is_known, square))
