"""Losses by task against plain JAX: one example a task, and n / K examples a task."""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import samo_jax
from samo_jax.experiments.reports.machine import machine

OUTPUT = Path(__file__).parents[1] / "docs" / "by_task_benchmark.md"
EXAMPLES, TASKS, ROUNDS = 32, [4, 16, 64], 30
COMBINERS: dict[str, tuple[Callable, Callable]] = {
    "mgda": (samo_jax.mgda, samo_jax.mgda_weights),
    "fairgrad": (samo_jax.fairgrad, samo_jax.fairgrad_weights),
    "upgrad": (samo_jax.upgrad, samo_jax.upgrad_weights),
}
COLUMNS = ["model", "what", "by_task ms", "plain JAX ms", "ratio (quartiles)"]
INTRODUCTION = """\
Written by `python benchmarks/by_task.py` on {machine}

Medians of {rounds} calls that take turns; ratios are of calls that followed each other.
One example a task: the step of `multitask(combiner)` with `by_task(..., unroll=32)`,
against `jax.vmap(jax.grad)`, the Gramian, the same solver and the weighted sum. n / K
examples a task: `task_gradients` of 1024 examples (256 images) in K tasks, against one
gradient of the mean loss of all of them.
"""


class Model(NamedTuple):
    """A network with a scalar loss of a batch.

    Attributes:
        params: parameters.
        loss: `loss(params, batch)`, the mean over the examples.
        draw: `draw(n)`, a batch of n examples.
        examples: number of examples that are shared out among tasks.
    """

    params: Any
    loss: Callable[[Any, Any], jax.Array]
    draw: Callable[[int], Any]
    examples: int


def _normal(*shape: int) -> jax.Array:
    rng = np.random.default_rng(shape)
    scale = np.prod(shape[:-1]) ** -0.5
    return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)


def mlp() -> Model:
    """Two hidden layers of 256."""

    def loss(params, batch):
        x, y = batch
        for layer in params[:-1]:
            x = jnp.tanh(x @ layer)
        return jnp.mean(jnp.square((x @ params[-1])[:, 0] - y))

    def draw(n):
        return n**0.5 * _normal(n, 64), n**0.5 * _normal(1, n)[0]

    return Model(
        [_normal(64, 256), _normal(256, 256), _normal(256, 1)], loss, draw, 1024
    )


def cnn() -> Model:
    """Two convolutions of 16 channels on images of 16 x 16."""

    def loss(params, batch):
        x, y = batch
        for kernel in params[:-1]:
            x = jax.lax.conv_general_dilated(
                x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jnp.tanh(x)
        x = jnp.mean(x, axis=(1, 2))
        return jnp.mean(jnp.square((x @ params[-1])[:, 0] - y))

    def draw(n):
        return n**0.5 * 16 * _normal(n, 16, 16, 3), n**0.5 * _normal(1, n)[0]

    return Model(
        [_normal(3, 3, 3, 16), _normal(3, 3, 16, 16), _normal(16, 1)], loss, draw, 256
    )


MODELS = {"MLP": mlp, "CNN": cnn}


def split(batch: Any, num_tasks: int) -> Any:
    """The batch with a leading task axis."""
    return jax.tree.map(
        lambda leaf: leaf.reshape(num_tasks, -1, *leaf.shape[1:]), batch
    )


def per_example(model: Model, combiner: str) -> tuple[Callable, Callable]:
    """A step with one task per example, and the same by hand."""
    make, weights_of = COMBINERS[combiner]
    batches = split(model.draw(EXAMPLES), EXAMPLES)
    tx = samo_jax.multitask(make(), num_tasks=EXAMPLES)
    state = tx.init(model.params)

    def ours(params, batches, state):
        loss_fn = samo_jax.by_task(model.loss, batches, unroll=EXAMPLES)
        # Without a perturbation the incoming updates are not used.
        return tx.update(params, state, params, loss_fn=loss_fn)

    def theirs(params, batches):
        gradients = jax.vmap(jax.grad(model.loss), (None, 0))(params, batches)
        weights = weights_of(samo_jax.gramian(gradients))
        return samo_jax.combine(weights, gradients)

    return (
        functools.partial(jax.jit(ours), model.params, batches, state),
        functools.partial(jax.jit(theirs), model.params, batches),
    )


def parts(model: Model, num_tasks: int) -> tuple[Callable, Callable]:
    """The gradients of K tasks, and that of one loss of all their examples."""
    batch = model.draw(model.examples)

    def ours(params, batch):
        loss_fn = samo_jax.by_task(model.loss, split(batch, num_tasks))
        return samo_jax.task_gradients(loss_fn, params)

    return (
        functools.partial(jax.jit(ours), model.params, batch),
        functools.partial(jax.jit(jax.grad(model.loss)), model.params, batch),
    )


def measure(steps: tuple[Callable, Callable], rounds: int) -> list[str]:
    """Milliseconds of both, and their ratio."""
    times: list[list[float]] = [[], []]
    for step in steps:
        jax.block_until_ready(step())
    for _ in range(rounds):
        for step, found in zip(steps, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(step())
            found.append(1e3 * (time.perf_counter() - start))
    ratios = [ours / theirs for ours, theirs in zip(*times, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    medians = [f"{statistics.median(found):.3g}" for found in times]
    return [*medians, f"{middle:.2f} ({low:.2f} to {high:.2f})"]


def main() -> None:
    """Measure both uses on both models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    console = Console(width=110)
    lines = ["# Benchmark of losses by task", ""]
    lines += [
        INTRODUCTION.format(
            machine=machine("samo_jax", "jax"), rounds=arguments.rounds
        ),
        f"| {' | '.join(COLUMNS)} |",
        f"|{' --- |' * len(COLUMNS)}",
    ]
    for name, make in MODELS.items():
        model = make()
        cases = [
            (f"{EXAMPLES} examples, {combiner}", per_example(model, combiner))
            for combiner in COMBINERS
        ]
        cases += [
            (
                f"{num_tasks} tasks of {model.examples // num_tasks}",
                parts(model, num_tasks),
            )
            for num_tasks in TASKS
        ]
        for what, steps in cases:
            cells = [name, what, *measure(steps, arguments.rounds)]
            lines.append(f"| {' | '.join(cells)} |")
            console.print(lines[-1])
    arguments.output.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
