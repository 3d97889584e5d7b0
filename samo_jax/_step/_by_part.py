"""`step_by_part`: the way of a step whose Gramian is that of a part of the model."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from samo_jax._combiners._types import Weighting, combiner_update, weighting_update
from samo_jax._gramian import gramian
from samo_jax._labels import SHARED, mask_leaves
from samo_jax._problem import Problem
from samo_jax._representation import (
    PartGradients,
    Rows,
    gradients_by_leaves,
    gradients_by_representation,
)
from samo_jax._step._devices import Devices
from samo_jax._step._method import (
    Method,
    Outcome,
    States,
    takes_part,
)
from samo_jax._step._passes import present_heads, shared_points
from samo_jax._tree import PyTree


def step_by_part(
    method: Method, problem: Problem, states: States, task_mask: jax.Array
) -> Outcome:
    """`w` of the Gramian by the representation or some leaves, then `J'w` in one pass.

    An `Aggregator` combines the gradients by the representation.
    """
    combiner, devices = method.combiner, method.devices
    context = method.perturbation.prepare(problem, states.perturbation)
    passes_at = part_passes(method, problem)
    (part,) = shared_points(method.perturbation, problem, context, passes_at)
    losses = devices.mean(part.losses)
    present = task_mask & part.are_finite()
    weighted_gradient = part.only(present).weighted_gradient
    heads, present = present_heads(weighted_gradient, problem, devices, present)
    part = part.only(present)
    products = gramian_of_rows(part.rows, len(problem.tasks), devices)
    args = problem.combiner_args(losses, present)
    if isinstance(combiner, Weighting):
        weights, combiner_state = weighting_update(combiner)(
            products, states.combiner, **args
        )
        shared = part.weighted_gradient(weights)
    else:
        shared, weights, combiner_state = _aggregate(combiner, part, states, args)
    shared, heads = devices.mean((shared, heads))
    states = states._replace(combiner=combiner_state)
    return Outcome(shared, heads, weights, present, states, args["losses"], products)


def part_passes(method: Method, problem: Problem) -> Callable[..., PartGradients]:
    """Passes at shared points, with the gradients that the Gramian is of."""
    if takes_part(method) and isinstance(method.gramian_of, str):
        return partial(
            gradients_by_representation, labels=problem.labels, unroll=problem.unroll
        )
    mask = method.gramian_of if takes_part(method) else True
    chosen = mask_leaves(problem.params, mask, "gramian_of")
    chosen = jax.tree.map(
        lambda label, leaf: label == SHARED and bool(leaf), problem.labels, chosen
    )
    if not any(jax.tree.leaves(chosen)):
        raise ValueError(
            "`gramian_of` must mark a shared leaf, got none. Mark the last layers that "
            "the tasks share."
        )

    def leaves(gradient: PyTree) -> list[jax.Array]:
        pairs = zip(jax.tree.leaves(chosen), jax.tree.leaves(gradient), strict=True)
        return [leaf for is_chosen, leaf in pairs if is_chosen]

    return partial(gradients_by_leaves, leaves=leaves, unroll=problem.unroll)


def gramian_of_rows(rows: list[Rows], num_tasks: int, devices: Devices) -> jax.Array:
    """The Gramian of all arrays that count: one reduction of K x K numbers."""
    total = jnp.zeros((num_tasks, num_tasks))
    for by_array in rows:
        if not by_array.is_common:
            continue
        if by_array.is_parameter:
            products = gramian(devices.mean(by_array.values))
        else:
            # Each device has examples of its own, whose losses it averages.
            products = devices.mean(gramian(by_array.values)) / devices.number()
        tasks = jnp.array(by_array.tasks)
        total = total.at[tasks[:, None], tasks[None, :]].add(products)
    return total


def _aggregate(combiner, part: PartGradients, states: States, args: dict[str, Any]):
    """The direction by all arrays that count, pulled back."""
    if part.pull_back is None:
        raise ValueError(
            "`gramian_of` 'representation' with an Aggregator needs one point for all "
            f"tasks, got {combiner!r} with several points, or a mask. Take a Weighting."
        )
    num_tasks = len(args["tasks"])

    def of_all_tasks(rows):
        zeros = jnp.zeros((num_tasks, *rows.values.shape[1:]), rows.values.dtype)
        return zeros.at[jnp.array(rows.tasks)].set(rows.values)

    task_grads = [of_all_tasks(rows) if rows.is_common else None for rows in part.rows]
    direction, weights, state = combiner_update(combiner)(
        task_grads, states.combiner, **args
    )
    cotangents = [
        jnp.zeros_like(rows.values[0]) if by_array is None else by_array
        for rows, by_array in zip(part.rows, direction, strict=True)
    ]
    return part.pull_back(cotangents), weights, state
