"""How compilation, memory and time of a step grow with tasks and parameters."""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import step
from page import Page
from step_models import build, cnn

from samo_jax.experiments.reports.machine import machine

OUTPUT = Path(__file__).parents[1] / "docs" / "growth_benchmark.md"
TASKS = [1, 4, 16, 64]
SIZES = [10**4, 10**6, 10**8]
UNROLL = [None, True, False, 8]
MEMORY = 8 * 2**30  # bytes that K gradients, perturbations and parameters may take
ROUNDS = 5
METHODS = {name: step.METHODS[name] for name in ("SAMO", "SAMO, two points")}
COLUMNS = ["method", "unroll", "compile s", "temporary MB", "step ms"]
INTRODUCTION = """\
Written by `python benchmarks/growth.py` on {machine}

One training step with FairGrad and SGD, clean pass included: seconds to trace and
compile, temporary memory as XLA reports it, and the median of {rounds} steps. All steps
of one model take turns. `null`, the default, chooses by the number of tasks.
"""


def mlp(num_parameters: int, num_tasks: int = 2) -> Any:
    """Three layers with about as many parameters, batch 32."""
    width = round((num_parameters / 3) ** 0.5)
    tasks = [f"target{i}" for i in range(num_tasks)]
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(32, width)).astype(np.float32)}

    def losses(params, data):
        h = data["x"]
        for kernel in params["trunk"].values():
            h = jax.nn.relu(h @ kernel)
        return {name: jnp.mean(jnp.square(h @ params["heads"][name])) for name in tasks}

    trunk = {f"layer{i}": (width, width) for i in range(3)}
    heads = {name: (width, 1) for name in tasks}
    return build("MLP", "mlp", trunk, heads, losses, data)


def measure(model: Any) -> list[list[str]]:
    """Table rows of one model: all methods and settings, in turns."""
    settings = list(itertools.product(METHODS, UNROLL))
    steps = [
        step.training_step(model, METHODS[name], unroll) for name, unroll in settings
    ]
    step.take_turns(steps, ROUNDS)
    return [
        [
            name,
            json.dumps(unroll),
            f"{timed.compile_seconds:.1f}",
            f"{timed.temporary_bytes / 2**20:.3g}",
            f"{timed.milliseconds:.3g}",
        ]
        for (name, unroll), timed in zip(settings, steps, strict=True)
    ]


def main() -> None:
    """Measure all settings that fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="*", default=TASKS)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    introduction = INTRODUCTION.format(
        machine=machine("samo_jax", "jax"), rounds=ROUNDS
    )
    page = Page(arguments.output, f"# Growth benchmark\n\n{introduction}")
    start = time.perf_counter()
    for num_tasks in arguments.tasks:
        page.section(f"CNN, K = {num_tasks}", COLUMNS, measure(cnn(num_tasks)))
    for size in arguments.sizes:
        model = mlp(size)
        # Parameters, K gradients, and K perturbed copies, probes and stacks at most.
        if 4 * size * (2 + 5 * model.num_tasks) > MEMORY:
            page.console.print(f"{size:.0e} parameters would not fit.")
            continue
        page.section(f"MLP, K = 2, {size:.0e} parameters", COLUMNS, measure(model))
    page.console.print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
