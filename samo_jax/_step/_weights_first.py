"""`step_by_weights_first`: the way of a step whose weights need no gradient."""

from typing import cast

import jax
import jax.numpy as jnp

from samo_jax._combiners._types import Weighting, weighting_update
from samo_jax._problem import Problem
from samo_jax._shared_points import all_at_points
from samo_jax._step._method import Method, Outcome, States
from samo_jax._step._passes import present_heads, shared_points


def step_by_weights_first(
    method: Method, problem: Problem, states: States, task_mask: jax.Array
) -> Outcome:
    """`w` of the losses, then `sum_i w_i g_i` in one backward pass per shared point."""
    perturbation, devices = method.perturbation, method.devices
    context = perturbation.prepare(problem, states.perturbation)
    (points,) = shared_points(perturbation, problem, context, all_at_points)
    losses = devices.mean(points.losses())
    present = task_mask & jnp.isfinite(losses)
    heads, present = present_heads(points.weighted_gradient, problem, devices, present)
    no_gramian = jnp.zeros((len(losses), len(losses)), losses.dtype)
    args = problem.combiner_args(losses, present)
    weights, combiner_state = weighting_update(cast(Weighting, method.combiner))(
        no_gramian, states.combiner, **args
    )
    shared, heads = devices.mean((points.weighted_gradient(weights), heads))
    states = states._replace(combiner=combiner_state)
    return Outcome(shared, heads, weights, present, states, args["losses"], None)
