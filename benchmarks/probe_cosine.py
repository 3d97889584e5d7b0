"""How well a probe knows a task's gradient in a pretrained transformer."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

import samo_jax
from samo_jax.experiments.networks.minilm import ENCODER
from samo_jax.experiments.problems.benchmark import Benchmark
from samo_jax.experiments.problems.emotions import emotions
from samo_jax.experiments.reports.machine import machine
from samo_jax.experiments.training.methods import method_of
from samo_jax.experiments.training.train_step import task_losses
from samo_jax.experiments.training.trainer import Trainer

TASKS = ("joy", "anger", "neutral")
MUS = (1e-4, 1e-3, 1e-2)
INTRODUCTION = """\
Cosine between the probe `c z` of a task and the task's gradient, on those parameters of
the encoder that are trained: its mean, the mean of its absolute value, and the share
of probes on the gradient's side. With an exact c the mean is sqrt(2 / (pi n)), where n
is the number of parameters. Distance: how far a probed point is, mu sqrt(n)."""


def problem_of(benchmark: Benchmark) -> tuple[Any, Any]:
    """Losses as a function of the trained part of the encoder, and this part."""
    trainer = Trainer(benchmark, method_of("mean"))
    params, _, state = trainer.start(0)
    losses = partial(
        task_losses, benchmark, trainer.net, batch=trainer.batch(), state=state
    )
    leaves = flatten_dict(params)
    is_frozen = benchmark.frozen or (lambda _: False)
    trained = {
        path: leaf
        for path, leaf in leaves.items()
        if path[0] == ENCODER and not is_frozen(path)
    }

    def loss_fn(trained):
        found = losses(unflatten_dict(leaves | trained), train=False)[0]
        return {task: found[task] for task in TASKS}

    return loss_fn, trained


def cosines(loss_fn: Any, params: Any, mu: float, probes: int) -> np.ndarray:
    """Cosines between probes and the tasks' gradients, shape (probes, tasks)."""
    gradients = jax.jit(partial(samo_jax.task_gradients, loss_fn))(params)

    @jax.jit
    def of_probe(key):
        keys = dict(zip(params, jax.random.split(key, len(params)), strict=True))
        z = {path: jax.random.normal(keys[path], params[path].shape) for path in params}
        c = samo_jax.directional_difference(loss_fn, params, z, mu=mu)

        def cosine(i, c):
            with_z = jax.tree.map(lambda of, z: jnp.stack([of[i], z]), gradients, z)
            return (
                jnp.sign(c) * samo_jax.gradient_cosines(samo_jax.gramian(with_z))[0, 1]
            )

        return jnp.stack([cosine(i, c[task]) for i, task in enumerate(sorted(TASKS))])

    return np.array([of_probe(jax.random.key(seed)) for seed in range(probes)])


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="GoEmotions' folder")
    parser.add_argument("--model", type=Path, help="folder of another encoder")
    parser.add_argument("--probes", type=int, default=50)
    arguments = parser.parse_args()
    print(f"On {machine('samo_jax', 'jax')}\n\n{INTRODUCTION}\n")
    print("trained | n | mu | distance | cosine | absolute | sqrt(2 / (pi n)) | side")
    print("--- | ---: | ---: | ---: | ---: | ---: | ---: | ---:")
    for train in ("lora", "all"):
        benchmark = emotions(
            arguments.data, "test", train=train, examples=320, model=arguments.model
        )
        loss_fn, params = problem_of(benchmark)
        n = sum(leaf.size for leaf in params.values())
        for mu in MUS:
            found = cosines(loss_fn, params, mu, arguments.probes)
            numbers = found.mean(), np.abs(found).mean(), (2 / (np.pi * n)) ** 0.5
            columns = " | ".join(f"{number:.2e}" for number in numbers)
            distance, side = mu * n**0.5, 100 * np.mean(found > 0)
            print(
                f"{train} | {n:,} | {mu:g} | {distance:.2g} | {columns} | {side:.0f} %"
            )


if __name__ == "__main__":
    main()
