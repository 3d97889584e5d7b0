"""The training loop: an ordinary Flax loop with `loss_fn=` passed to the optimiser."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

import samo_jax
from samo_jax.experiments.benchmarks.benchmark import Benchmark, Examples
from samo_jax.experiments.benchmarks.checkpoints import Checkpoint
from samo_jax.experiments.benchmarks.devices import ONE, Devices
from samo_jax.experiments.benchmarks.looks import Look
from samo_jax.experiments.benchmarks.methods import Step
from samo_jax.experiments.schema import conform

Metrics = dict[str, dict[str, float]]  # by task


class NetState(NamedTuple):
    """State of a network besides its parameters.

    Attributes:
        collections: collections of Flax, such as "batch_stats".
        key: key of the next step's dropout.
    """

    collections: dict[str, Any]
    key: jax.Array | None


NO_STATE = NetState({}, None)


class Evaluation(TypedDict):
    """Results after an epoch.

    Attributes:
        epoch: number of epochs.
        loss: mean loss of each task over the epoch's batches.
        metrics: metrics of each task, on evaluation examples.
        look: None of a trainer that takes none.
    """

    epoch: int
    loss: dict[str, float]
    metrics: Metrics
    look: Look | None


class Run(NamedTuple):
    """Results of one training run.

    Attributes:
        metrics: metrics of each task, on evaluation examples.
        metrics_curve: about ten `(epoch, metrics)`.
        loss_curve: mean training loss over tasks and batches, of each epoch.
        seconds_per_step: median over the epochs but a process's first, which compiles.
        looks: `(epoch, look)` for each of `metrics_curve`; none of a trainer that
            takes none.
    """

    metrics: Metrics
    metrics_curve: list[tuple[int, Metrics]]
    loss_curve: list[float]
    seconds_per_step: float
    looks: Sequence[tuple[int, Look]] = ()


class Past(NamedTuple):
    """The past of a run, as JSON has it.

    Attributes:
        losses: losses of each epoch, mean over tasks and batches.
        seconds: seconds per step of each epoch, by the processes that trained.
        evaluations: about ten.
    """

    losses: list[float]
    seconds: list[list[float]]
    evaluations: list[Evaluation]

    def run(self) -> Run:
        """The results of the run so far."""
        # The first epoch of a process compiles.
        later = [seconds for part in self.seconds for seconds in part[1:]]
        return Run(
            metrics=self.evaluations[-1]["metrics"],
            metrics_curve=[(of["epoch"], of["metrics"]) for of in self.evaluations],
            loss_curve=self.losses,
            seconds_per_step=float(np.median(later or self.seconds[0])),
            looks=[(of["epoch"], of["look"]) for of in self.evaluations if of["look"]],
        )


class Record(NamedTuple):
    """Content of a checkpoint beside arrays.

    Attributes:
        rngs: the states of the generators of batches.
        past: past of the run.
    """

    rngs: list[dict[str, Any]]
    past: Past


def read_record(record: Any, epochs: int) -> tuple[Past, list[np.random.Generator]]:
    """The past of a run of so many epochs, and its generators.

    Raises:
        ValueError: if this is not the record of such a run.
    """
    states, past = conform(record, Record, "its record")
    done = len(past.losses)
    evaluated = [epoch for epoch in evaluated_epochs(epochs) if epoch <= done]
    if not 0 < done <= epochs or [of["epoch"] for of in past.evaluations] != evaluated:
        raise ValueError(f"its record is not that of a run of {epochs} epochs")
    if not all(past.seconds) or sum(map(len, past.seconds)) != done:
        raise ValueError("its record lacks the times of some epochs")
    rngs = [np.random.default_rng(0) for _ in range(2)]
    for rng, state in zip(rngs, states, strict=True):
        rng.bit_generator.state = state
    return past, rngs


def evaluated_epochs(epochs: int) -> list[int]:
    """The epochs after which there is an evaluation: about ten, and the last."""
    every = max(epochs // 10, 1)
    return [*range(every, epochs, every), epochs]


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


def make_train_step(
    losses: Callable[..., Any],
    tx: optax.GradientTransformationExtraArgs,
    extra_args: Callable[[Step], dict[str, Any]],
    replicated: NamedSharding | None = None,
):
    """One jitted step; the same for every method.

    The clean pass alone changes the network's collections, unless it leaves them with a
    NaN: perturbed passes see the same batch and dropout masks, and what they leave is
    dropped. Probes are in
    evaluation mode, as in SAMO's code.

    Most use `batch` alone; XLA then drops `second`, an independent batch, and `last`,
    that of the step before.

    Args:
        losses: `losses(params, batch, state, train)`, see `task_losses`.
        tx: the optimiser.
        extra_args: arguments that its `update` takes beyond `loss_fn`.
        replicated: sharding of the outputs; None: as the compiler finds.
    """

    def losses_on(batch, state, train=True):
        return lambda params: losses(params, batch, state, train)[0]

    @partial(jax.jit, out_shardings=replicated)
    def train_step(params, opt_state, batch, second, last, state=NO_STATE):
        next_key = None
        if state.key is not None:
            key, next_key = jax.random.split(state.key)
            state = state._replace(key=key)
        clean_pass = samo_jax.mean_value_and_grad(losses, has_aux=True)
        (values, collections), grads = clean_pass(params, batch, state)
        collections = samo_jax.keep_finite(collections, state.collections)
        new_state = NetState(collections, next_key)
        extra = extra_args(
            Step(params, values, losses_on(second, state), losses_on(last, state))
        )
        updates, opt_state = tx.update(
            grads,
            opt_state,
            params,
            loss_fn=losses_on(batch, state),
            probe_loss_fn=losses_on(batch, new_state, train=False),
            value=jnp.mean(jnp.stack(jax.tree.leaves(values))),
            **extra,
        )
        return optax.apply_updates(params, updates), opt_state, values, new_state

    return train_step


class Trainer:
    """Trains a benchmark's network with one method; compiled once, for any seed."""

    def __init__(
        self,
        benchmark: Benchmark,
        make_tx: Callable[..., optax.GradientTransformationExtraArgs],
        extra_args: Callable[[Step], dict[str, Any]],
        second_batch: bool = True,
        look: Callable[[Any, Any, NetState], Look] | None = None,
        devices: Devices = ONE,
    ):
        """Hold what all seeds share.

        Args:
            benchmark: tasks, network and data.
            make_tx: optimiser from seed, and any hyperparameters with defaults, which
                set its state but not its update.
            extra_args: arguments that its `update` takes beyond `loss_fn`.
            second_batch: whether `extra_args` uses an independent batch.
            look: look at parameters, optimiser state and network state, with every
                evaluation.
            devices: devices that it trains on.
        """
        self.benchmark, self.make_tx = benchmark, make_tx
        self.second_batch, self.look, self.devices = second_batch, look, devices
        self.net = benchmark.net(tuple(benchmark.tasks))
        losses = partial(task_losses, benchmark, self.net)
        self.train_step = make_train_step(
            losses, make_tx(0), extra_args, devices.replicated
        )
        modes = {"train": False} if benchmark.has_modes else {}
        self.init = jax.jit(partial(self.net.init, **modes))
        self.observe = jax.jit(self._observe, out_shardings=devices.replicated)

    def train(
        self,
        seed: int,
        epochs: int,
        on_epoch: Callable[[], None],
        on_evaluation: Callable[[Evaluation], None] = lambda _: None,
        checkpoint: Checkpoint | None = None,
        **hyperparams: Any,
    ) -> tuple[Any, Run]:
        """Train from scratch, or go on; return the final parameters, and the run.

        The seed sets initialisation, batch order and probes; `hyperparams` go to
        `make_tx`. Where `checkpoint` has something, training goes on from there, and
        `on_epoch` and `on_evaluation` are called for what has been done, too.
        """
        train, size = self.benchmark.train, self.benchmark.batch_size
        params, state = self._start(seed)
        opt_state = self.make_tx(seed, **hyperparams).init(params)
        place, gather = self.devices.replicate, self.devices.gather
        params, opt_state, state = place((params, opt_state, state))
        rngs = [np.random.default_rng(of) for of in (seed, [seed, 1])]
        last, past = None, Past([], [], [])
        if checkpoint and (
            saved := checkpoint.load(
                lambda: gather((params, opt_state, state, self._batch())),
                partial(read_record, epochs=epochs),
            )
        ):
            (*arrays, last), (past, rngs) = saved
            (params, opt_state, state), last = place(arrays), self.devices.split(last)
        for evaluation in past.evaluations:
            on_evaluation(evaluation)
        for _ in past.losses:
            on_epoch()
        past.seconds.append([])
        rng, second_rng = rngs
        evaluated = set(evaluated_epochs(epochs))
        for epoch in range(len(past.losses) + 1, epochs + 1):
            history = []
            start = time.perf_counter()
            others = (
                train.batches(size, second_rng) if self.second_batch else repeat(None)
            )
            for batch, second in zip(train.batches(size, rng), others, strict=False):
                params, opt_state, losses, state = self.train_step(
                    params, opt_state, batch, second or batch, last or batch, state
                )
                history.append(losses)
                last = batch
            history = jax.block_until_ready(history)
            past.seconds[-1].append((time.perf_counter() - start) / len(history))
            history = jax.device_get(history)
            past.losses.append(float(np.mean(jax.tree.leaves(history))))
            if epoch in evaluated:
                evaluation = Evaluation(
                    epoch=epoch,
                    loss=jax.tree.map(lambda *steps: float(np.mean(steps)), *history),
                    metrics=self.evaluate(params, state),
                    look=self.look(params, opt_state, state) if self.look else None,
                )
                past.evaluations.append(evaluation)
                on_evaluation(evaluation)
            on_epoch()
            if checkpoint and checkpoint.due(epoch == epochs):
                states = [rng.bit_generator.state for rng in rngs]
                checkpoint.save(
                    epoch,
                    gather((params, opt_state, state, last)),
                    {"rngs": states, "past": past._asdict()},
                )
        return params, past.run()

    def evaluate(self, params: Any, state: NetState = NO_STATE) -> Metrics:
        """The metrics of each task."""
        data, size = self.benchmark.evaluation, self.benchmark.evaluation_batch_size
        observed = [
            jax.device_get(self.observe(params, state, batch))
            for batch in data.batches(size)
        ]
        return {
            name: task.metrics([batch[name] for batch in observed if name in batch])
            for name, task in self.benchmark.tasks.items()
        }

    def _batch(self) -> Examples:
        """Any one, of training."""
        size, rng = self.benchmark.batch_size, np.random.default_rng(0)
        return next(iter(self.benchmark.train.batches(size, rng)))

    def _start(self, seed: int) -> tuple[Any, NetState]:
        """Parameters and state of a new network."""
        example = next(iter(self.benchmark.train.batches(1)))
        key = jax.random.key(seed)
        collections = dict(self.init(key, example.inputs))
        params = collections.pop("params")
        dropout_key = jax.random.fold_in(key, 1) if self.benchmark.has_modes else None
        return params, NetState(collections, dropout_key)

    def _observe(self, params, state, batch):
        outputs, _ = apply_net(
            self.benchmark, self.net, params, batch.inputs, state, train=False
        )
        return {
            name: self.benchmark.tasks[name].observe(outputs[name], label)
            for name, label in batch.labels.items()
        }
