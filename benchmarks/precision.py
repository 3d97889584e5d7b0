"""What rounding to bfloat16 and float16 does to perturbations, probes and training."""

import argparse
import os
import time
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

# By default XLA may leave out a rounding between two operations that it fuses.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_allow_excess_precision=false"
)

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import Progress

import samo_jax
from samo_jax.experiments.problems.benchmark import Benchmark, Examples
from samo_jax.experiments.problems.generated import digits
from samo_jax.experiments.reports.machine import machine
from samo_jax.experiments.reports.tables import markdown_table, spread, terminal_table
from samo_jax.experiments.training.methods import method_of
from samo_jax.experiments.training.optimizers import make_optimizer

OUTPUT = Path(__file__).parents[1] / "docs" / "precision_benchmark.md"
HALF = (jnp.bfloat16, jnp.float16)
RADII = (0.01, 0.05, 0.2)
STEPS = (1e-4, 1e-3, 1e-2, 1e-1)
DEVICES = (8, 64, 512, 4096)
METHODS = ("fairgrad", "fairgrad+global_sam", "fairgrad+samo")
START_SCALE, PERIOD = 2.0**15, 100

INTRODUCTION = """\
Written by `python benchmarks/precision.py` on {machine}

Half precision is emulated on a CPU, where every operation rounds its result
(`xla_allow_excess_precision` off): what it does to numbers is measured, speed is not.
What follows from the tables stands in [Half precision](precision.md).
"""
ROUNDING = """\
`eps` is rho along the gradient of the mean loss; delta is by how much the parameters
that the loss gets really move, `cast(theta + eps) - cast(theta)`. Stored: theta is in
half precision itself. Masters: theta is float32, and cast inside the loss. Still: the
percentage of parameters that do not move though eps has them move. Projection:
`<delta, eps> / ||eps||^2`; error: `||delta - eps|| / ||eps||`; rise: by how much delta
raises the loss (in float32 arithmetic) relative to eps. CNN: that of the digits, after
{epochs} epochs; layer: one of 1000 x 1000 weights, as initialised, in a regression.
"""
PROBES = """\
`l(theta + mu z) - l(theta - mu z)` of both digits' losses, z standard normal,
{probes} probes, float32 masters of the digits' CNN after {epochs} epochs. How many
percent of the signs are those of the derivative along z, and how many of the
differences are zero. "Loss too": the cross-entropy and its mean are computed in half
precision; otherwise from the outputs on in float32.
"""
SUMS = """\
Of the gradients of n devices, 20,000 numbers each: a normal part that all have, and
normal noise of each device, `noise` times as long. All additions are rounded, in a tree
or one after another as in a ring; the error is relative to the sum's length.
"""
TRAINING = """\
Digits, FairGrad (alpha 2), Adam, {epochs} epochs, {seeds} seeds: percent of the right
digits, mean over both tasks. Losses are computed from the outputs on in float32. The
scale of float16 starts at {scale:.0f}, halves when a task was left out, and doubles
after {period} good steps.
"""
SCALES = """\
Run by run, it ended at {scales}; steps without one of the tasks: {left_out}.
"""


class Problem(NamedTuple):
    """Parameters, and losses as a function of them in any dtype."""

    name: str
    params: Any
    losses: Any


class Storage(NamedTuple):
    """How parameters are kept, and in what dtype losses are computed."""

    params: Any
    compute: Any
    scaled: bool = False


STORAGES = {
    "float32": Storage(jnp.float32, jnp.float32),
    "bfloat16, float32 masters": Storage(jnp.float32, jnp.bfloat16),
    "float16, float32 masters, dynamic scale": Storage(jnp.float32, jnp.float16, True),
    "bfloat16 stored": Storage(jnp.bfloat16, jnp.bfloat16),
}


def cast(tree: Any, dtype: Any) -> Any:
    """All leaves in `dtype`."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def task_losses(
    benchmark: Benchmark, params: Any, batch: Examples, loss_too: bool = False
) -> dict[str, jax.Array]:
    """In the parameters' dtype up to the outputs, or to the end."""
    dtype = jax.tree.leaves(params)[0].dtype
    net = benchmark.net(tuple(benchmark.tasks))
    outputs = net.apply({"params": params}, jnp.asarray(batch.inputs, dtype))
    return {
        name: task.loss(
            outputs[name].astype(dtype if loss_too else jnp.float32), batch.labels[name]
        )
        for name, task in benchmark.tasks.items()
    }


def initialise(benchmark: Benchmark, seed: int) -> Any:
    """Float32 parameters."""
    net = benchmark.net(tuple(benchmark.tasks))
    image = benchmark.train.inputs[:1]
    return jax.jit(net.init)(jax.random.key(seed), image)["params"]


class Trainer:
    """Trains with one method and storage; compiled once, for any seed."""

    def __init__(self, benchmark: Benchmark, method: str, storage: Storage):
        """Hold what all seeds share."""
        self.benchmark, self.storage = benchmark, storage
        self.make_tx = partial(make_optimizer, method_of(method), benchmark)
        self.tx = self.make_tx(0)
        self.step = jax.jit(self._step)
        self.predict = jax.jit(self._predict)

    def train(self, seed: int, epochs: int) -> Any:
        """Parameters after some epochs from scratch."""
        params = cast(initialise(self.benchmark, seed), self.storage.params)
        scale = (jnp.float32(START_SCALE), jnp.int32(0))
        carry = params, self.make_tx(seed).init(params), scale
        rng = np.random.default_rng(seed)
        for _ in range(epochs):
            for batch in self.benchmark.train.batches(self.benchmark.batch_size, rng):
                carry = self.step(*carry, batch)
        return carry

    def accuracy(self, params: Any) -> float:
        """Percent of the right digits."""
        examples = self.benchmark.evaluation
        found = self.predict(params, examples.inputs)
        return 100 * float(
            np.mean([found[name] == examples.labels[name] for name in found])
        )

    def _step(self, params, opt_state, scale, batch):
        scale, good = scale
        loss_fn = partial(task_losses, self.benchmark, batch=batch)
        if self.storage.params == jnp.float32:
            loss_fn = samo_jax.mixed_precision(
                loss_fn,
                self.storage.compute,
                loss_scale=scale if self.storage.scaled else None,
            )
        _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        updates, new = self.tx.update(grads, opt_state, params, loss_fn=loss_fn)
        new_params = optax.apply_updates(params, updates)
        left_out = new[0].skipped > opt_state[0].skipped
        some, every = jnp.any(left_out), jnp.all(left_out)
        params, rest = jax.tree.map(
            partial(jnp.where, every), (params, opt_state[1:]), (new_params, new[1:])
        )
        good = jnp.where(some, 0, good + 1)
        grown = jnp.where(good % PERIOD == 0, 2 * scale, scale)
        scale = jnp.where(some, jnp.maximum(scale / 2, 1), grown)
        return params, (new[0], *rest), (scale, good)

    def _predict(self, params, inputs):
        params = cast(params, self.storage.compute)
        net = self.benchmark.net(tuple(self.benchmark.tasks))
        inputs = jnp.asarray(inputs, self.storage.compute)
        outputs = net.apply({"params": params}, inputs)
        return jax.tree.map(lambda logits: jnp.argmax(logits, -1), outputs)


def wide_layer() -> Problem:
    """A layer of a million weights between fixed inputs and targets."""
    rng = np.random.default_rng(0)
    width = 1000
    x, y = (rng.normal(size=(64, width)).astype(np.float32) for _ in range(2))
    kernel = rng.normal(size=(width, width)) * np.sqrt(2 / width)

    def losses(params):
        return {"y": jnp.mean(jnp.square(jax.nn.relu(x @ params["kernel"]) - y))}

    return Problem("layer", {"kernel": jnp.asarray(kernel, jnp.float32)}, losses)


def mean_loss(problem: Problem, params: Any) -> jax.Array:
    """Of all tasks."""
    return jnp.mean(jnp.stack(jax.tree.leaves(problem.losses(params))))


def rounding(problem: Problem) -> Iterator[list[str]]:
    """A row for each dtype, storage and radius."""
    loss = jax.jit(partial(mean_loss, problem))
    gradient = jax.jit(jax.grad(loss))(problem.params)
    direction = optax.tree.scale(1 / optax.tree.norm(gradient), gradient)
    for dtype in HALF:
        for kept in ("stored", "masters"):
            # Not jitted: every rounding is an operation of its own.
            start = cast(cast(problem.params, dtype), jnp.float32)
            theta = start if kept == "stored" else problem.params
            for rho in RADII:
                eps = optax.tree.scale(rho, direction)
                end = optax.tree.add(theta, eps)
                rounded = cast(cast(end, dtype), jnp.float32)
                delta = optax.tree.sub(rounded, start)
                along, moves = (
                    np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
                    for tree in (eps, delta)
                )
                rise = loss(rounded) - loss(start)
                yield [
                    f"{problem.name}, {jnp.dtype(dtype).name}, {kept}",
                    f"{rho:g}",
                    f"{100 * np.mean(moves[along != 0] == 0):.0f}",
                    f"{optax.tree.vdot(delta, eps) / rho**2:.2f}",
                    f"{optax.tree.norm(optax.tree.sub(delta, eps)) / rho:.2f}",
                    f"{rise / (loss(end) - loss(theta)):.2f}",
                ]


def probes(benchmark: Benchmark, params: Any, num_probes: int) -> Iterator[list[str]]:
    """A row for each dtype and end of the loss, over `STEPS`."""
    batch = next(benchmark.train.batches(benchmark.batch_size))
    keys = jax.random.split(jax.random.key(0), num_probes)

    def direction(key):
        return optax.tree.random_like(key, params)

    def losses(params, loss_too=False):
        return jnp.stack(
            jax.tree.leaves(task_losses(benchmark, params, batch, loss_too))
        )

    def over_probes(function):
        return jax.jit(lambda: jax.lax.map(lambda key: function(direction(key)), keys))

    def derivative(z):
        return jax.jvp(losses, (params,), (z,))[1]

    slopes = np.sign(over_probes(derivative)())
    for dtype in (jnp.float32, *HALF):
        for loss_too in (False, True)[: 1 if dtype == jnp.float32 else 2]:
            loss_fn = samo_jax.mixed_precision(
                partial(losses, loss_too=loss_too), dtype
            )

            def differences(z, loss_fn=loss_fn):
                return jnp.stack(
                    [
                        samo_jax.directional_difference(loss_fn, params, z, mu=mu)
                        for mu in STEPS
                    ]
                )

            found = np.sign(over_probes(differences)())
            name = jnp.dtype(dtype).name + (", loss too" if loss_too else "")
            cells = [
                f"{100 * np.mean(found[:, i] == slopes):.0f} "
                f"({100 * np.mean(found[:, i] == 0):.0f})"
                for i in range(len(STEPS))
            ]
            yield [name, *cells]


def in_a_tree(terms: jax.Array) -> jax.Array:
    """The sum of halves, down to pairs."""
    while len(terms) > 1:
        terms = terms[::2] + terms[1::2]
    return terms[0]


def in_a_ring(terms: jax.Array) -> jax.Array:
    """The sum of one term after another."""
    return jax.lax.fori_loop(1, len(terms), lambda i, s: s + terms[i], terms[0])


def sums() -> Iterator[list[str]]:
    """A row for each dtype, length of the noise and order of addition."""
    keys = jax.random.split(jax.random.key(0))
    common = jax.random.normal(keys[0], (20_000,))
    for dtype, noise, order in product(HALF, (0, 3), (in_a_tree, in_a_ring)):
        row = [jnp.dtype(dtype).name, f"{noise}", order.__name__.replace("_", " ")]
        for devices in DEVICES:
            own = noise * jax.random.normal(keys[1], (devices, len(common)))
            exact = jnp.sum(common + own, axis=0)
            found = jax.jit(order)((common + own).astype(dtype)).astype(jnp.float32)
            error = jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)
            row.append(f"{100 * error:.2g}")
        yield row


def main() -> None:
    """Measure all four."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--probes", type=int, default=200)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    epochs, seeds = arguments.epochs, arguments.seeds
    console = Console(width=110)
    start = time.perf_counter()
    text = "# Half precision benchmark\n\n"
    text += INTRODUCTION.format(machine=machine("samo_jax", "jax", "flax"))
    benchmark = digits("test")
    progress = Progress(console=console, transient=True)
    bar = progress.add_task("training", total=1 + len(STORAGES) * len(METHODS) * seeds)

    scales, left_out = [], []

    def section(title: str, explanation: str, rows: list[list[str]]) -> None:
        nonlocal text
        text += f"\n## {title}\n\n{explanation}\n{markdown_table(rows)}"
        arguments.output.write_text(text)
        console.print(terminal_table(rows, title))

    def accuracies(method: str, storage: Storage) -> list[float]:
        trainer, found = Trainer(benchmark, method, storage), []
        for seed in range(seeds):
            params, opt_state, (scale, _) = trainer.train(seed, epochs)
            found.append(trainer.accuracy(params))
            if storage.scaled:
                scales.append(f"{float(scale):.0f}")
                left_out.append(str(jnp.max(opt_state[0].skipped)))
            progress.advance(bar)
        return found

    with progress:
        trained, *_ = Trainer(benchmark, METHODS[0], STORAGES["float32"]).train(
            0, epochs
        )
        progress.advance(bar)
        batch = next(benchmark.train.batches(benchmark.batch_size))
        cnn = Problem("CNN", trained, partial(task_losses, benchmark, batch=batch))
        columns = ["kept", "rho", "still %", "projection", "error", "rise"]
        rows = [row for problem in (cnn, wide_layer()) for row in rounding(problem)]
        section("Perturbations", ROUNDING.format(epochs=epochs), [columns, *rows])

        columns = ["losses in", *(f"mu {mu:g}: right (zero)" for mu in STEPS)]
        rows = list(probes(benchmark, trained, arguments.probes))
        explanation = PROBES.format(probes=arguments.probes, epochs=epochs)
        section("Probes", explanation, [columns, *rows])

        columns = ["dtype", "noise", "order", *(f"n {n}: error %" for n in DEVICES)]
        section("Sums over devices", SUMS, [columns, *sums()])

        rows = [
            [
                name,
                *(spread(accuracies(method, storage), 1) for method in METHODS),
            ]
            for name, storage in STORAGES.items()
        ]
        explanation = TRAINING.format(
            epochs=epochs, seeds=seeds, scale=START_SCALE, period=PERIOD
        )
        explanation += SCALES.format(
            scales=", ".join(scales), left_out=", ".join(left_out)
        )
        section("Training", explanation, [["parameters", *METHODS], *rows])
    console.print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
