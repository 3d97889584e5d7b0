"""One training step: an ordinary Flax one with `loss_fn=` passed to the optimiser."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

import samo_jax
from samo_jax.experiments.problems.benchmark import Benchmark, Examples
from samo_jax.experiments.training.extra_arguments import ExtraArgs, Step


class NetState(NamedTuple):
    """State of a network besides its parameters.

    Attributes:
        collections: collections of Flax, such as "batch_stats".
        key: key of the next step's dropout.
    """

    collections: dict[str, Any]
    key: jax.Array | None


NO_STATE = NetState({}, None)


def apply_net(
    benchmark: Benchmark,
    net: Any,
    params: Any,
    inputs: Any,
    state: NetState,
    train: bool,
) -> tuple[Any, dict[str, Any]]:
    """The outputs of each task, and the collections that they leave."""
    variables = {"params": params, **state.collections}
    if not benchmark.has_modes:
        return net.apply(variables, inputs), {}
    if not train:
        return net.apply(variables, inputs, train=False), state.collections
    return net.apply(
        variables,
        inputs,
        train=True,
        rngs={"dropout": state.key},
        mutable=list(state.collections),
    )


def task_losses(
    benchmark: Benchmark,
    net: Any,
    params: Any,
    batch: Examples,
    state: NetState = NO_STATE,
    train: bool = True,
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """The loss of each task, a scalar, and the collections that they leave."""
    outputs, collections = apply_net(benchmark, net, params, batch.inputs, state, train)
    losses = {
        name: task.loss(outputs[name], batch.labels[name])
        for name, task in benchmark.tasks.items()
    }
    return losses, collections


def losses_by_task(benchmark: Benchmark, batch: Examples) -> samo_jax.LossFn:
    """The losses of tasks that have examples of their own, each computed alone."""
    tasks = tuple(benchmark.tasks)
    stand_in = tasks[0]
    net, task_loss = benchmark.net([stand_in]), benchmark.tasks[stand_in].loss

    def loss(params, own):
        i, inputs, labels = own
        shared = {name: params[name] for name in params if name not in tasks}
        heads = jax.tree.map(lambda *of: jnp.stack(of), *(params[t] for t in tasks))
        head = jax.tree.map(lambda leaf: leaf[i], heads)
        variables = {"params": shared | {stand_in: head}}
        outputs: Any = net.apply(variables, inputs[None])
        return task_loss(outputs[stand_in], labels)

    labels = jnp.stack([batch.labels[task] for task in tasks])
    batches = jnp.arange(len(tasks)), batch.inputs, labels
    return samo_jax.by_task(loss, batches, names=tasks)


def make_train_step(
    losses: Callable[..., Any],
    tx: optax.GradientTransformationExtraArgs,
    extra_args: ExtraArgs = lambda _: {},
    replicated: NamedSharding | None = None,
    by_task: Callable[[Examples], samo_jax.LossFn] | None = None,
    param_labels: Any = None,
):
    """One jitted step; the same for every method.

    The clean pass alone changes the network's collections, unless it leaves them with a
    NaN: perturbed passes see the same batch and dropout masks, and what they leave is
    dropped. Probes are in evaluation mode, as in SAMO's code.

    Most use `batch` alone; XLA then drops `second`, an independent batch, and `last`,
    that of the step before. It also drops a clean gradient that nobody uses.

    Args:
        losses: `losses(params, batch, state, train)`, see `task_losses`.
        tx: the optimiser.
        extra_args: arguments that its `update` takes beyond `loss_fn`.
        replicated: sharding of the outputs; None: as the compiler finds.
        by_task: function of a batch to its losses, each of which can be computed alone.
            None: they cannot be.
        param_labels: see `samo_jax.mean_value_and_grad`.
    """

    def losses_on(batch, state, train=True):
        if by_task is not None:
            return by_task(batch)
        return lambda params: losses(params, batch, state, train)[0]

    def example_losses_on(batch, state):
        def example_losses(params, index):
            def of_example(example):
                alone = jax.tree.map(lambda leaf: leaf[None], example)
                return losses(params, alone, state, True)[0]

            return jax.vmap(of_example)(batch.take(index))

        return example_losses

    @partial(jax.jit, out_shardings=replicated)
    def train_step(params, opt_state, batch, second, last, state=NO_STATE):
        next_key = None
        if state.key is not None:
            key, next_key = jax.random.split(state.key)
            state = state._replace(key=key)
        clean_pass = samo_jax.mean_value_and_grad(
            losses, has_aux=True, param_labels=param_labels
        )
        (values, collections), grads = clean_pass(params, batch, state)
        collections = samo_jax.keep_finite(collections, state.collections)
        new_state = NetState(collections, next_key)
        step = Step(
            params,
            values,
            losses_on(second, state),
            losses_on(last, state),
            example_losses_on(batch, state),
            batch.num_examples,
        )
        updates, opt_state = tx.update(
            grads,
            opt_state,
            params,
            loss_fn=losses_on(batch, state),
            probe_loss_fn=losses_on(batch, new_state, train=False),
            value=jnp.mean(jnp.stack(jax.tree.leaves(values))),
            **extra_args(step),
        )
        return optax.apply_updates(params, updates), opt_state, values, new_state

    return train_step
