"""`step_at_shared_points`: weights of a Gramian, of losses or kept ones, then `J'w`."""

from collections.abc import Callable
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp

from samo_jax._absent_tasks import among_present
from samo_jax._combiners._types import Weighting, weighting_update
from samo_jax._gramian import gramian
from samo_jax._labels import SHARED, mask_leaves
from samo_jax._part_gradients import (
    PartGradients,
    Sweep,
    gradients_by_leaves,
    gradients_by_nothing,
)
from samo_jax._problem import Problem
from samo_jax._representation import gradients_by_representation
from samo_jax._step._combine import settle
from samo_jax._step._devices import Devices
from samo_jax._step._gramian_blocks import gradients_by_blocks
from samo_jax._step._kept_weights import (
    KeptWeights,
    growth_factor,
    kept_after,
    known_weights,
    take_or_go_on,
)
from samo_jax._step._method import (
    Method,
    Outcome,
    States,
    makes_task_gradients,
    takes_part,
)
from samo_jax._step._passes import present_heads, shared_points
from samo_jax._tree import PyTree, each, scale_leaves, tree_norm


def step_at_shared_points(
    method: Method,
    problem: Problem,
    states: States,
    task_mask: jax.Array,
    kept: KeptWeights | None,
) -> tuple[PyTree, Outcome, KeptWeights | None]:
    """`w` of the Gramian by a part of the model, then `d = J'w`.

    With kept weights the Gramian and w are taken every so often, or once a new task
    comes. A step in between makes one backward pass per point: `d = s^(p - 1) J'w` with
    the kept w, where s is the length of `J'w` relative to what it was when w was taken,
    and p the combiner's `degree`. So d grows with the gradients as the combiner's own
    does. If a task is absent now, w is solved anew for the others from the kept
    Gramian.
    """
    combiner, devices = cast(Weighting, method.combiner), method.devices
    part = part_at_points(method, problem, states)
    sums, finite, sweep = sums_and_sweep(part, is_kept=kept is not None)
    heads, there = present_heads(sums, problem, devices, task_mask, finite)
    losses = devices.mean(part.losses)

    def take():
        found = sweep()
        present = there & devices.all(found.finite)
        products = gramian_of_sweep(found, present, devices)
        args = problem.combiner_args(losses, present)
        weights, state = weighting_update(combiner)(products, states.combiner, **args)
        return present, weights, products, state

    def go_on(kept):
        args = problem.combiner_args(losses, there)
        weights = known_weights(combiner, kept, states.combiner, args)
        return there, weights, kept.kept_gramian, states.combiner

    is_new, found = take_or_go_on(take, go_on, method, task_mask, kept)
    present, weights, products, combiner_state = found
    shared = devices.mean(sums(weights))
    length = tree_norm(problem.shared(shared))
    if kept is not None:
        old = jnp.where(is_new, length, kept.kept_length)
        factor = growth_factor(combiner, length, old)
        shared = scale_leaves(shared, lambda _: factor)
        weights = factor * weights
    outcome = Outcome(
        shared=shared,
        heads=devices.mean(heads),
        weights=weights,
        present=present,
        states=states._replace(combiner=combiner_state),
        losses=problem.combiner_args(losses, present)["losses"],
        gramian=products if makes_task_gradients(method) else None,
    )
    direction, outcome = settle(
        outcome, states, problem.labels, problem.mean_grad, problem.tasks
    )
    kept = kept_after(kept, is_new, outcome.present, weights, products, length)
    return direction, outcome, kept


def part_at_points(method: Method, problem: Problem, states: States) -> PartGradients:
    """Passes at the points that tasks share."""
    perturbation = method.perturbation
    context = perturbation.prepare(problem, states.perturbation)
    if makes_task_gradients(method):
        passes_at = part_passes(method, problem)
    else:
        passes_at = gradients_by_nothing
    (part,) = shared_points(perturbation, problem, context, passes_at)
    return part


def part_passes(method: Method, problem: Problem) -> Callable[..., PartGradients]:
    """Passes at shared points, with the gradients that the Gramian is of."""
    labels, unroll = problem.labels, problem.unroll
    if takes_part(method) and isinstance(method.gramian_of, str):
        return partial(gradients_by_representation, labels=labels, unroll=unroll)
    if method.gramian_block is not None:
        return partial(
            gradients_by_blocks,
            problem=problem,
            block=method.gramian_block,
            devices=method.devices,
        )
    mask = method.gramian_of if takes_part(method) else True
    chosen = mask_leaves(problem.params, mask, "gramian_of")
    chosen = jax.tree.map(
        lambda label, leaf: label == SHARED and bool(leaf), labels, chosen
    )
    if takes_part(method) and not any(jax.tree.leaves(chosen)):
        raise ValueError(
            "`gramian_of` must mark a shared leaf, got none. Mark the last layers that "
            "the tasks share."
        )
    return partial(gradients_by_leaves, chosen=chosen, unroll=unroll)


def sums_and_sweep(
    part: PartGradients, *, is_kept: bool
) -> tuple[Callable[[jax.Array], PyTree], jax.Array, Callable[[], Sweep]]:
    """Weighted gradients, which tasks are finite as far as is known, and the sweep.

    Where each step makes a sweep, both are from it.
    """
    if is_kept:
        finite = each(jnp.isfinite, part.losses)
        return part.weighted_gradient, finite, part.sweep
    sweep = part.sweep()
    return sweep.weighted_gradient, sweep.finite, lambda: sweep


def gramian_of_sweep(sweep: Sweep, present: jax.Array, devices: Devices) -> jax.Array:
    """The Gramian of all arrays that count, zero where a task is absent.

    One reduction of K x K numbers over devices.
    """
    if sweep.gramian is not None:
        return among_present(sweep.gramian, present)
    total = jnp.zeros((len(present), len(present)))
    for rows in sweep.rows:
        if not rows.is_common:
            continue
        if rows.is_parameter:
            products = gramian(devices.mean(rows.values))
        else:
            # Each device has examples of its own, whose losses it averages.
            products = devices.mean(gramian(rows.values)) / devices.number()
        if len(rows.tasks) == len(present):
            total += products
        else:
            tasks = jnp.array(rows.tasks)
            total = total.at[tasks[:, None], tasks[None, :]].add(products)
    return among_present(total, present)
