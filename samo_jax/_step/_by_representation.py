"""`step_by_representation`: an `Aggregator` on the gradients by a representation."""

import jax
import jax.numpy as jnp

from samo_jax._absent_tasks import select_tasks
from samo_jax._combiners._types import combiner_update
from samo_jax._problem import Problem
from samo_jax._step._at_shared_points import (
    gramian_of_sweep,
    part_at_points,
)
from samo_jax._step._method import Method, Outcome, States
from samo_jax._step._passes import present_heads


def step_by_representation(
    method: Method, problem: Problem, states: States, task_mask: jax.Array
) -> Outcome:
    """The direction by all arrays that count, pulled back to the parameters."""
    combiner, devices = method.combiner, method.devices
    part = part_at_points(method, problem, states)
    sweep = part.sweep()
    if sweep.pull_back is None:
        raise ValueError(
            "`gramian_of` 'representation' with an Aggregator needs one point for all "
            f"tasks, got {combiner!r} with several points. Take a Weighting."
        )
    heads, present = present_heads(
        sweep.weighted_gradient, problem, devices, task_mask, sweep.finite
    )
    args = problem.combiner_args(devices.mean(part.losses), present)
    zeros = jax.tree.map(jnp.zeros_like, sweep.task_grads)
    task_grads = select_tasks(present, sweep.task_grads, zeros)
    direction, weights, state = combiner_update(combiner)(
        task_grads, states.combiner, **args
    )
    shared, heads = devices.mean((sweep.pull_back(direction), heads))
    return Outcome(
        shared,
        heads,
        weights,
        present,
        states._replace(combiner=state),
        args["losses"],
        gramian_of_sweep(sweep, present, devices),
    )
