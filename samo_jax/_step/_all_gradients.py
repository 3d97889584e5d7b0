"""`step_by_all_gradients`: the way of a step that has all K gradients at once."""

from functools import partial

import jax
import jax.numpy as jnp

from samo_jax._absent_tasks import is_finite, select_tasks
from samo_jax._perturbations._base import finish_of
from samo_jax._problem import Problem
from samo_jax._step._combine import combine_task_grads
from samo_jax._step._method import Method, Outcome, States
from samo_jax._step._passes import task_pass
from samo_jax._task_loop import map_drawn, map_tasks
from samo_jax._tree import accumulator_dtype, zero_unless


def step_by_all_gradients(
    method: Method,
    problem: Problem,
    states: States,
    task_mask: jax.Array,
    *,
    drawn: jax.Array | None = None,
) -> Outcome:
    """`g_i = grad l_i(theta + eps_i)` of all tasks, then the combiner's direction.

    Or of the drawn ones, shape (k,): only their passes are made.
    """
    perturbation, devices = method.perturbation, method.devices
    context = perturbation.prepare(problem, states.perturbation)
    clean = perturbation.clean_gradients(context)
    pass_of = task_pass(perturbation, problem, context)

    def without_faults(i):
        loss, *grads = pass_of(i)
        grads.append(jax.tree.map(lambda leaf: leaf[i], clean))
        present = devices.all(task_mask[i] & is_finite(loss, grads))
        loss = loss.astype(accumulator_dtype())
        return loss, present, *jax.tree.map(partial(zero_unless, present), grads)

    loop = without_faults, len(problem.tasks), problem.unroll
    if drawn is None:
        found = map_tasks(*loop)
    else:
        # Sums over devices cannot stand in a branch.
        found = map_drawn(*loop, drawn, branches=devices.axis_name is None)
    losses, present, task_grads, samples, clean = found
    state = states.perturbation
    if perturbation.finish is not None:
        finish = partial(finish_of(perturbation), context, present=present)
        samples = [finish(grads, state)[0] for grads in samples]
        task_grads, state = finish(task_grads, state)
        # Clean gradients of absent tasks may have come in.
        given = samples, task_grads
        zeros = jax.tree.map(jnp.zeros_like, given)
        samples, task_grads = select_tasks(present, given, zeros)

    losses, task_grads, samples, clean = devices.mean(
        (losses, task_grads, samples, clean)
    )
    args = problem.combiner_args(losses, present)
    if samples:
        args["sample_grads"] = [problem.shared(grads) for grads in samples]
    if clean is not None:
        args["clean_grads"] = problem.shared(clean)
    states = states._replace(perturbation=devices.mean_of_floats(state))
    return combine_task_grads(
        method.combiner,
        states,
        task_grads,
        problem.labels,
        with_gramian=method.diagnostics,
        **args,
    )
