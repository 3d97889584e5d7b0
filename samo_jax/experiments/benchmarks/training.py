"""The training loop: an ordinary Flax loop with `loss_fn=` passed to the optimiser."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypedDict

import jax
import numpy as np
import optax

import samo_jax
from samo_jax.experiments.benchmarks.benchmark import Benchmark, Examples
from samo_jax.experiments.benchmarks.looks import Look
from samo_jax.experiments.benchmarks.methods import Step

Metrics = dict[str, dict[str, float]]  # by task


class Evaluation(TypedDict):
    """What is known after an epoch.

    Attributes:
        epoch: their number.
        loss: of each task, mean over the epoch's batches.
        metrics: of each task, on evaluation examples.
        look: None of a trainer that takes none.
    """

    epoch: int
    loss: dict[str, float]
    metrics: Metrics
    look: Look | None


class Run(NamedTuple):
    """What one training run produced.

    Attributes:
        metrics: of each task, on evaluation examples.
        metrics_curve: about ten `(epoch, metrics)`.
        loss_curve: mean training loss over tasks and batches, of each epoch.
        seconds_per_step: median over the epochs after the first, which compiles.
        looks: `(epoch, look)` for each of `metrics_curve`; none of a trainer that
            takes none.
    """

    metrics: Metrics
    metrics_curve: list[tuple[int, Metrics]]
    loss_curve: list[float]
    seconds_per_step: float
    looks: Sequence[tuple[int, Look]] = ()


def task_losses(benchmark: Benchmark, net: Any, params: Any, batch: Examples) -> Any:
    """The loss of each task, a dict of scalars."""
    outputs = net.apply({"params": params}, batch.inputs)
    return {
        name: task.loss(outputs[name], batch.labels[name])
        for name, task in benchmark.tasks.items()
    }


def make_train_step(
    losses: Callable[[Any, Examples], Any],
    tx: optax.GradientTransformationExtraArgs,
    extra_args: Callable[[Step], dict[str, Any]],
):
    """One jitted step; the same for every method.

    Most use `batch` alone; XLA then drops `second`, an independent batch, and `last`,
    that of the step before.

    Args:
        losses: `losses(params, batch)`, of each task.
        tx: the optimiser.
        extra_args: what its `update` takes beyond `loss_fn`.
    """

    def losses_on(batch):
        return lambda params: losses(params, batch)

    @jax.jit
    def train_step(params, opt_state, batch, second, last):
        loss_fn = losses_on(batch)
        losses, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        extra = extra_args(Step(params, losses, losses_on(second), losses_on(last)))
        updates, opt_state = tx.update(
            grads, opt_state, params, loss_fn=loss_fn, **extra
        )
        return optax.apply_updates(params, updates), opt_state, losses

    return train_step


class Trainer:
    """Trains a benchmark's network with one method; compiled once, for any seed."""

    def __init__(
        self,
        benchmark: Benchmark,
        make_tx: Callable[[int], optax.GradientTransformationExtraArgs],
        extra_args: Callable[[Step], dict[str, Any]],
        look: Callable[[Any, Any], Look] | None = None,
    ):
        """Hold what all seeds share.

        Args:
            benchmark: tasks, network and data.
            make_tx: optimiser from seed.
            extra_args: what its `update` takes beyond `loss_fn`.
            look: at parameters and optimiser state, with every evaluation.
        """
        self.benchmark, self.make_tx, self.look = benchmark, make_tx, look
        self.net = benchmark.net(tuple(benchmark.tasks))
        losses = partial(task_losses, benchmark, self.net)
        self.train_step = make_train_step(losses, make_tx(0), extra_args)
        self.observe = jax.jit(self._observe)

    def run(
        self,
        seed: int,
        epochs: int,
        on_epoch: Callable[[], None],
        on_evaluation: Callable[[Evaluation], None] = lambda _: None,
    ) -> Run:
        """Train from scratch; the seed sets initialisation, batch order and probes."""
        train, size = self.benchmark.train, self.benchmark.batch_size
        params = self._init(seed)
        opt_state = self.make_tx(seed).init(params)
        rng, second_rng = map(np.random.default_rng, (seed, [seed, 1]))
        last = None
        seconds, loss_curve, metrics_curve, looks, metrics = [], [], [], [], {}
        for epoch in range(1, epochs + 1):
            history = []
            start = time.perf_counter()
            epoch_batches = zip(
                train.batches(size, rng), train.batches(size, second_rng), strict=True
            )
            for batch, second in epoch_batches:
                params, opt_state, losses = self.train_step(
                    params, opt_state, batch, second, last or batch
                )
                history.append(losses)
                last = batch
            history = jax.block_until_ready(history)
            seconds.append((time.perf_counter() - start) / len(history))
            loss_curve.append(float(np.mean(jax.tree.leaves(history))))
            if epoch % max(epochs // 10, 1) == 0 or epoch == epochs:
                metrics = self.evaluate(params)
                metrics_curve.append((epoch, metrics))
                look = self.look(params, opt_state) if self.look else None
                if look:
                    looks.append((epoch, look))
                loss = jax.tree.map(lambda *steps: float(np.mean(steps)), *history)
                on_evaluation(
                    Evaluation(epoch=epoch, loss=loss, metrics=metrics, look=look)
                )
            on_epoch()
        # The first epoch compiles.
        median = float(np.median(seconds[1:] or seconds))
        return Run(metrics, metrics_curve, loss_curve, median, looks)

    def evaluate(self, params: Any) -> Metrics:
        """The metrics of each task."""
        batches = self.benchmark.evaluation.batches(_EVALUATION_BATCH)
        observed = [jax.device_get(self.observe(params, batch)) for batch in batches]
        return {
            name: task.metrics([batch[name] for batch in observed])
            for name, task in self.benchmark.tasks.items()
        }

    def _init(self, seed: int) -> Any:
        inputs = self.benchmark.train.take(slice(1)).inputs
        return jax.jit(self.net.init)(jax.random.key(seed), inputs)["params"]

    def _observe(self, params, batch):
        outputs: Any = self.net.apply({"params": params}, batch.inputs)
        return {
            name: task.observe(outputs[name], batch.labels[name])
            for name, task in self.benchmark.tasks.items()
        }


_EVALUATION_BATCH = 500
