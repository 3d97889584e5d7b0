"""Directions of a perturbation and of its local part."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import samo_jax
from samo_jax.experiments.benchmarks.looks import agreement
from samo_jax.experiments.local.methods import Method, task_labels


class Look(NamedTuple):
    """One look at the gradients of a batch, on the shared leaves.

    Attributes:
        step: updates done before.
        local: mean over tasks of the cosine between the local part and the gradient.
        whole: cosines of the whole perturbation.
        anchor: cosines of g0.
        pairs: mean cosine between the gradients of two tasks.
        conflicts: share of pairs with a negative one.
    """

    step: ArrayLike
    local: ArrayLike
    whole: ArrayLike
    anchor: ArrayLike
    pairs: ArrayLike
    conflicts: ArrayLike


def look(
    method: Method,
    loss_fn: samo_jax.LossFn,
    params: Any,
    state: samo_jax.MultitaskState,
    tasks: tuple[str, ...],
) -> Look:
    """The directions that a step with this `loss_fn` would see, as arrays."""
    task_grads = samo_jax.task_gradients(loss_fn, params)
    mean_grad = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), task_grads)
    problem = samo_jax.Problem(
        loss_fn=loss_fn,
        probe_loss_fn=loss_fn,
        sample_loss_fns=(),
        params=params,
        mean_grad=mean_grad,
        labels=jax.tree.broadcast(task_labels(tasks, params), params),
        tasks=tasks,
        step=state.step,
        key=None if state.key is None else jax.random.fold_in(state.key, state.step),
        extra_args={},
        unroll=None,
    )

    def shared(tree):
        return {name: tree[name] for name in tree if name not in tasks}

    def mean_cosine(direction):
        def cosine(i):
            task_grad = jax.tree.map(lambda leaf: leaf[i], task_grads)
            pair = jax.tree.map(lambda *rows: jnp.stack(rows), direction(i), task_grad)
            return samo_jax.gradient_cosines(samo_jax.gramian(shared(pair)))[0, 1]

        return jnp.mean(jax.lax.map(cosine, jnp.arange(len(tasks))))

    def along(perturbation, memory):
        context = perturbation.prepare(problem, memory)
        return mean_cosine(lambda i: perturbation.perturb(context, i))

    memory = state.perturbation_state
    local_memory = memory.local_state if method.alpha == "adaptive" else memory
    gramian = samo_jax.gramian(shared(task_grads))
    pairs, conflicts = agreement(gramian)
    return Look(
        step=state.step,
        local=along(method.local, local_memory),
        whole=along(method.make(1.0), memory),
        anchor=mean_cosine(lambda _: mean_grad),
        pairs=pairs,
        conflicts=conflicts,
    )
