"""Directions of a perturbation and of its local part, through training."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import samo_jax
from samo_jax.experiments.problems.benchmark import Benchmark
from samo_jax.experiments.training.agreement import Diagnose, make_diagnose
from samo_jax.experiments.training.grammar import F_MTL, Call, parameters
from samo_jax.experiments.training.methods import Method
from samo_jax.experiments.training.optimizers import (
    MIXED,
    Setup,
    make_perturbation,
    task_labels,
)
from samo_jax.experiments.training.train_step import task_losses

DIRECTIONS = ("local", "whole", "g0")


def diagnose_directions(method: Method, benchmark: Benchmark) -> Diagnose | None:
    """A `Diagnose` with `directions`, mean cosines with the task's gradient.

    They are those of the perturbation's local part, of the whole perturbation and of
    g0, on the shared leaves and one batch. None for a method that perturbs nothing.
    """
    if method.perturbation is None:
        return None
    tasks, call = tuple(benchmark.tasks), method.perturbation
    losses = partial(task_losses, benchmark, benchmark.net(tasks))
    batch = next(benchmark.train.batches(benchmark.batch_size))
    diagnose = make_diagnose(losses, batch, tasks)

    @jax.jit
    def cosines(params, state):
        return mean_cosines(call, lambda p: losses(p, batch)[0], params, state, tasks)

    def with_directions(params, opt_state, net_state):
        found = diagnose(params, opt_state, net_state)
        state = optax.tree.get(opt_state, "MultitaskState")
        found["directions"] = jax.tree.map(float, cosines(params, state))
        return found

    return with_directions


def mean_cosines(
    call: Call,
    loss_fn: samo_jax.LossFn,
    params: Any,
    state: samo_jax.MultitaskState,
    tasks: Sequence[str],
) -> dict[str, jax.Array]:
    """Mean over tasks of the cosine between each of `DIRECTIONS` and the gradient."""
    tasks = tuple(tasks)
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
        key=None
        if state.key is None
        else jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step),
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

    def of_perturbation(perturbation, memory):
        context = perturbation.prepare(problem, memory)
        return mean_cosine(lambda i: perturbation.perturb(context, i))

    memory = state.perturbation_state
    adaptive = call.name in MIXED and call.arguments.get("alpha") == "adaptive"
    values = (
        of_perturbation(
            _perturbation(call, alpha=0.0), memory.local_state if adaptive else memory
        ),
        of_perturbation(_perturbation(call), memory),
        mean_cosine(lambda _: mean_grad),
    )
    return dict(zip(DIRECTIONS, values, strict=True))


def _perturbation(call: Call, **mixed: float) -> samo_jax.Perturbation:
    """The perturbation of radius 1; of one that mixes, with another alpha."""
    if call.name == F_MTL:
        return samo_jax.sam(1.0, direction=call.arguments.get("direction", "local"))
    others = mixed if call.name in MIXED else {}
    arguments = dict(call.arguments) | {"rho": 1.0} | others
    known = parameters(call.name)
    call = call._replace(arguments={k: v for k, v in arguments.items() if k in known})
    return make_perturbation(call, Setup(2, 1, None, None))
