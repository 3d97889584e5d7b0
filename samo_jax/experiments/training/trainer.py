"""The trainer: a benchmark's network and one method, compiled once."""

import copy
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import repeat
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from samo_jax.experiments.problems.benchmark import Benchmark, Examples
from samo_jax.experiments.training.agreement import Diagnose
from samo_jax.experiments.training.checkpoints import Checkpoint
from samo_jax.experiments.training.devices import ONE, Devices
from samo_jax.experiments.training.extra_arguments import extra_args
from samo_jax.experiments.training.methods import (
    LOSSES_AFTER,
    SECOND_BATCH,
    Method,
)
from samo_jax.experiments.training.optimizers import make_optimizer, task_labels
from samo_jax.experiments.training.runs import (
    Evaluation,
    Metrics,
    Past,
    Run,
    evaluated_epochs,
    read_record,
)
from samo_jax.experiments.training.train_step import (
    NO_STATE,
    NetState,
    apply_net,
    losses_by_task,
    make_train_step,
    task_losses,
)


class Trainer:
    """Trainer of a benchmark's network with one method, for any seed.

    Attributes:
        benchmark: tasks, network and data.
        net: the network.
        train_step: see `make_train_step`.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        method: Method,
        swept: Mapping[str, Any] = MappingProxyType({}),
        diagnose: Diagnose | None = None,
        devices: Devices = ONE,
    ):
        """Make what all seeds share.

        Args:
            benchmark: tasks, network and data.
            method: method to train with.
            swept: the parameters that `train` may set, see `make_optimizer`.
            diagnose: diagnosis to make with every evaluation.
            devices: devices that it trains on.
        """
        self.benchmark, self._diagnose, self._devices = benchmark, diagnose, devices
        self._swept = swept
        self._make_tx = partial(make_optimizer, method, benchmark)
        self._second_batch = SECOND_BATCH in method.needs
        self._last_batch = LOSSES_AFTER in method.needs
        tasks = tuple(benchmark.tasks)
        self.net = benchmark.net(tasks)
        self.train_step = make_train_step(
            partial(task_losses, benchmark, self.net),
            self._make_tx(0, swept),
            extra_args(method),
            devices.replicated,
            partial(losses_by_task, benchmark) if benchmark.by_task else None,
            partial(task_labels, tasks, frozen=benchmark.frozen)
            if benchmark.frozen
            else None,
        )
        modes = {"train": False} if benchmark.has_modes else {}
        self._init = jax.jit(partial(self.net.init, **modes))
        self._observe = self._make_observe()

    def with_data(self, benchmark: Benchmark) -> "Trainer":
        """The trainer on other data, of tasks with the same losses: compiled once."""
        other = copy.copy(self)
        other.benchmark = benchmark
        other._observe = other._make_observe()
        return other

    def train(
        self,
        seed: int,
        epochs: int,
        on_epoch: Callable[[], None],
        on_evaluation: Callable[[Evaluation], None] = lambda _: None,
        checkpoint: Checkpoint | None = None,
        **swept: Any,
    ) -> tuple[Any, Run]:
        """Train from scratch, or go on; return the final parameters, and the run.

        The seed sets initialisation, batch order and draws; `swept` are values of the
        trainer's `swept`. Where `checkpoint` has something, training goes on from
        there, and `on_epoch` and `on_evaluation` are called for what has been done,
        too.
        """
        train, size = self._train_data(), self.benchmark.batch_size
        params, opt_state, state = self.start(seed, **swept)
        place, gather = self._devices.replicate, self._devices.gather
        params, opt_state, state = place((params, opt_state, state))
        rngs = [np.random.default_rng(of) for of in (seed, [seed, 1])]
        last, past = None, Past([], [], [])
        if checkpoint and (
            saved := checkpoint.load(
                lambda: gather((params, opt_state, state, self._kept(self.batch()))),
                partial(read_record, epochs=epochs),
            )
        ):
            (*arrays, last), (past, rngs) = saved
            (params, opt_state, state), last = place(arrays), self._devices.shard(last)
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
                train.batches(size, second_rng) if self._second_batch else repeat(None)
            )
            for batch, second in zip(train.batches(size, rng), others, strict=False):
                params, opt_state, losses, state = self.train_step(
                    params, opt_state, batch, second or batch, last or batch, state
                )
                history.append(losses)
                last = self._kept(batch)
            history = jax.block_until_ready(history)
            past.seconds[-1].append((time.perf_counter() - start) / len(history))
            history = jax.device_get(history)
            past.losses.append(_mean(*jax.tree.leaves(history)))
            if epoch in evaluated:
                evaluation = Evaluation(
                    epoch=epoch,
                    loss=jax.tree.map(_mean, *history),
                    metrics=self.evaluate(params, state),
                    agreement=(
                        self._diagnose(params, opt_state, state)
                        if self._diagnose
                        else None
                    ),
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
        """The metrics of each task on evaluation examples."""
        data, size = self.benchmark.evaluation, self.benchmark.evaluation_batch_size
        observed = [
            jax.device_get(self._observe(params, state, batch))
            for batch in data.batches(size)
        ]
        return {
            name: task.metrics([batch[name] for batch in observed if name in batch])
            for name, task in self.benchmark.tasks.items()
        }

    def start(self, seed: int, **swept: Any) -> tuple[Any, Any, NetState]:
        """Parameters and the states of optimiser and network, before training."""
        example = next(iter(self.benchmark.train.batches(1)))
        key = jax.random.key(seed)
        collections = dict(self._init(key, example.inputs))
        params = _merged(collections.pop("params"), self.benchmark.pretrained)
        dropout_key = jax.random.fold_in(key, 1) if self.benchmark.has_modes else None
        opt_state = self._make_tx(seed, dict(self._swept) | swept).init(params)
        return params, opt_state, NetState(collections, dropout_key)

    def batch(self) -> Examples:
        """A batch of training examples, always the same."""
        size, rng = self.benchmark.batch_size, np.random.default_rng(0)
        return next(iter(self._train_data().batches(size, rng)))

    def temporary_bytes(self) -> int:
        """The peak of a step's temporary memory; compiles the step anew."""
        step = self.train_step.lower(*self.step_arguments())
        memory: Any = step.compile().memory_analysis()
        return int(memory.temp_size_in_bytes)

    def step_arguments(self) -> tuple[Any, ...]:
        """Arguments of the train step, always the same."""
        params, opt_state, state = self.start(0)
        batch = self.batch()
        return params, opt_state, batch, batch, batch, state

    def _train_data(self) -> Any:
        """The training data, in batches of one shape where a step takes two of them."""
        train = self.benchmark.train
        return train.uniform() if self._second_batch or self._last_batch else train

    def _kept(self, batch: Examples) -> Examples | None:
        """The batch, if the next step takes it."""
        return batch if self._last_batch else None

    def _make_observe(self) -> Callable[[Any, NetState, Examples], Any]:
        def observe(params, state, batch):
            outputs, _ = apply_net(
                self.benchmark, self.net, params, batch.inputs, state, train=False
            )
            return {
                name: self.benchmark.tasks[name].observe(outputs[name], label)
                for name, label in batch.labels.items()
            }

        return jax.jit(observe, out_shardings=self._devices.replicated)


def _merged(params: Any, pretrained: Mapping[str, Any]) -> Any:
    """Parameters, of which some are replaced."""
    flat = flatten_dict(params) | flatten_dict(dict(pretrained))
    return unflatten_dict(jax.tree.map(jnp.asarray, flat))


def _mean(*losses: np.ndarray) -> float:
    """Mean of the losses, but for those of batches without a label, which are NaN."""
    known = [loss for loss in losses if not np.isnan(loss)]
    return float(np.mean(known)) if known else float("nan")


def trainers_of(method: Method, benchmark: Benchmark, **options: Any) -> list[Trainer]:
    """The trainers of a method's networks: one, or for single-task one a task.

    Args:
        method: method to train with.
        benchmark: tasks, network and data.
        **options: options of `Trainer`; one network a task is not diagnosed.
    """
    if method.combiner is not None:
        return [Trainer(benchmark, method, **options)]
    options.pop("diagnose", None)
    return [Trainer(benchmark.only([t]), method, **options) for t in benchmark.tasks]
