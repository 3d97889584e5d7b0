"""Training with one local part, and looking at where it points."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import samo_jax
from samo_jax.experiments.benchmarks.benchmark import Benchmark
from samo_jax.experiments.benchmarks.tasks import Task
from samo_jax.experiments.local.looks import look
from samo_jax.experiments.local.methods import METHODS, PLAIN, Method, make_optimizer

_LOOK_EVERY = 40


class Run(NamedTuple):
    """Results of one training run.

    Attributes:
        error: error of each task, in percent, lower is better.
        loss: mean training loss over tasks and the batches of the last epoch.
        rho: the radius.
        looks: the fields of a `Look`, one in forty steps; none of plain training.
    """

    error: dict[str, float]
    loss: float
    rho: float
    looks: list[list[float]]


class Cost(NamedTuple):
    """Cost of one step.

    Attributes:
        units: cost in forward passes; a backward pass counts as two.
        temporary_bytes: peak, as XLA reports it.
        milliseconds: median, all methods taking turns.
    """

    units: int
    temporary_bytes: int
    milliseconds: float


class Trainer:
    """Trains a network with one method; compiled once, run with any seed and radius."""

    def __init__(self, name: str, problem: Benchmark):
        """Compile the step for problems like this one."""
        self.method: Method = METHODS[name]
        self.tasks = tuple(problem.tasks)
        self.net = problem.net(self.tasks)
        self.losses_of = {name: task.loss for name, task in problem.tasks.items()}
        self.make_tx = partial(make_optimizer, name, self.tasks, problem.learning_rate)
        self.batch = problem.train.take(np.arange(problem.batch_size))
        self.carry = self._start(0)
        self.step = jax.jit(self._step).lower(*self.carry, self.batch, 0.0).compile()
        self.look = jax.jit(self._look)
        self.apply = jax.jit(self._outputs)

    def run(
        self, problem: Benchmark, rho: float, seed: int, on_epoch: Callable[[], None]
    ) -> Run:
        """Train; the seed sets initialisation, batch order and probes."""
        rng = np.random.default_rng(seed)
        params, opt_state = self._start(seed)
        looks, losses, count = [], [], 0
        for _ in range(problem.epochs):
            losses = []
            for batch in problem.train.batches(problem.batch_size, rng):
                # Not at step 0, when a memory is empty.
                if self.method.local is not None and count % _LOOK_EVERY == 1:
                    seen = self.look(params, opt_state, batch)
                    looks.append(list(map(float, seen)))
                params, opt_state, loss = self.step(params, opt_state, batch, rho)
                losses.append(loss)
                count += 1
            on_epoch()
        self.carry = params, opt_state
        inputs, labels = problem.evaluation
        outputs = self.apply(params, inputs)
        error = {
            name: _error(task, outputs[name], labels[name])
            for name, task in problem.tasks.items()
        }
        return Run(error, float(np.mean(losses)), rho, looks)

    def seconds(self) -> float:
        """The time of one step."""
        start = time.perf_counter()
        jax.block_until_ready(self.step(*self.carry, self.batch, 0.1))
        return time.perf_counter() - start

    def cost(self, milliseconds: float) -> Cost:
        """A cost with the median time of a step."""
        memory: Any = self.step.memory_analysis()
        forward, backward = self.method.passes(len(self.tasks))
        return Cost(forward + 2 * backward, memory.temp_size_in_bytes, milliseconds)

    def _start(self, seed):
        inputs = self.batch.inputs[:1]
        params = self.net.init(jax.random.key(seed), inputs)["params"]
        return params, self.make_tx(0.0, seed).init(params)

    def _outputs(self, params, inputs) -> Any:
        return self.net.apply({"params": params}, inputs)

    def _losses(self, batch, params):
        outputs = self._outputs(params, batch.inputs)
        return {
            name: loss(outputs[name], batch.labels[name])
            for name, loss in self.losses_of.items()
        }

    def _look(self, params, opt_state, batch):
        loss_fn = partial(self._losses, batch)
        return look(self.method, loss_fn, params, opt_state[0], self.tasks)

    def _step(self, params, opt_state, batch, rho):
        loss_fn, grads = partial(self._losses, batch), params
        if self.method.clean_pass:
            losses, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        else:
            losses = loss_fn(params)
        updates, opt_state = self.make_tx(rho, 0).update(
            grads, opt_state, params, loss_fn=loss_fn
        )
        loss = jnp.mean(jnp.stack(jax.tree.leaves(losses)))
        return optax.apply_updates(params, updates), opt_state, loss


class SingleTaskTrainer:
    """Trains a network for each task alone, plainly."""

    def __init__(self, problem: Benchmark):
        """Compile the step, which all tasks share."""
        self.trainer = Trainer(PLAIN, _alone(problem, next(iter(problem.tasks))))

    def run(
        self, problem: Benchmark, rho: float, seed: int, on_epoch: Callable[[], None]
    ) -> Run:
        """Train, counting all tasks' epochs as one's."""
        runs = {
            task: self.trainer.run(_alone(problem, task), rho, seed, lambda: None)
            for task in problem.tasks
        }
        for _ in range(problem.epochs):
            on_epoch()
        error = {task: run.error["task"] for task, run in runs.items()}
        loss = float(np.mean([run.loss for run in runs.values()]))
        return Run(error, loss, rho, [])


def _error(task: Task, output: jax.Array, label: np.ndarray) -> float:
    """The only metric of a task, in percent, lower is better."""
    observed = jax.device_get(task.observe(output, label))
    [(metric, value)] = task.metrics([observed]).items()
    return 100 - value if task.higher_is_better[metric] else value


def _alone(problem: Benchmark, task: str) -> Benchmark:
    """One task, named "task" so that all need one compilation."""
    train, evaluation = (
        examples._replace(labels={"task": examples.labels[task]})
        for examples in (problem.train, problem.evaluation)
    )
    tasks = {"task": problem.tasks[task]}
    return problem._replace(tasks=tasks, train=train, evaluation=evaluation)
