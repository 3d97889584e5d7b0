"""`step_by_all_gradients`: the way of a step that has all K gradients at once."""

from functools import partial

import jax
import jax.numpy as jnp

from samo_jax._absent_tasks import is_finite, select_tasks
from samo_jax._labels import only_heads, own_heads
from samo_jax._perturbations._base import finish_of
from samo_jax._problem import Problem
from samo_jax._step._combine import combine_task_grads
from samo_jax._step._method import Method, Outcome, States
from samo_jax._step._passes import task_pass
from samo_jax._task_loop import map_and_sum
from samo_jax._tree import accumulator_dtype, as_floats, zero_unless, zeros_like_params


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
        grads, *others = jax.tree.map(partial(zero_unless, present), grads)
        heads = () if finishes else as_floats(only_heads(grads, problem.labels))
        grads = grads if finishes else problem.shared(grads)
        return (loss, present, grads, *others), heads

    finishes = perturbation.finish is not None
    zeros = zeros_like_params(only_heads(problem.params, problem.labels))
    (losses, present, task_grads, samples, clean), heads = map_and_sum(
        without_faults,
        () if finishes else zeros,
        len(problem.tasks),
        problem.unroll,
        drawn,
        # Sums over devices cannot stand in a branch.
        branches=devices.axis_name is None,
    )
    state = states.perturbation
    if finishes:
        finish = partial(finish_of(perturbation), context, present=present)
        samples = [finish(grads, state)[0] for grads in samples]
        task_grads, state = finish(task_grads, state)
        present &= devices.all(jax.vmap(is_finite)(losses, task_grads))
        # Clean gradients of absent tasks may have come in.
        given = samples, task_grads
        zeros = jax.tree.map(jnp.zeros_like, given)
        samples, task_grads = select_tasks(present, given, zeros)
        heads = own_heads(task_grads, problem.labels, problem.tasks)

    rows = problem.shared(task_grads)
    samples = list(map(problem.shared, samples))
    clean = None if clean is None else problem.shared(clean)
    losses, rows, heads, samples, clean = devices.mean(
        (losses, rows, heads, samples, clean)
    )
    args = problem.combiner_args(losses, present)
    if samples:
        args["sample_grads"] = samples
    if clean is not None:
        args["clean_grads"] = clean
    states = states._replace(perturbation=devices.mean_of_floats(state))
    return combine_task_grads(
        method.combiner, states, rows, heads, with_gramian=method.diagnostics, **args
    )
