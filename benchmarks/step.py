"""Time, memory and compilation of a training step, method by method, side by side."""

import argparse
import json
import os
import shlex
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import step_torch
from page import Page
from rich.progress import track
from step_clock import Timed, compiled, take_turns, training_step
from step_methods import ALPHA, METHODS, MU, RHO
from step_models import MODELS, Model

import samo_jax
from samo_jax.experiments.reports.machine import machine

OUTPUT = Path(__file__).parents[1] / "docs" / "step_benchmark.md"
ROUNDS = 15
COLUMNS = [
    "method",
    "step ms",
    "/ bare passes",
    "/ FairGrad",
    "/ F-MTL",
    "compile s",
    "temporary MB",
]

INTRODUCTION = """\
# {title}

Written by `{environment}python benchmarks/step.py` on {machine}

One training step with FairGrad and SGD, compiled with `jax.jit`, `unroll={unroll}`. All
steps and passes of one model take turns, {rounds} rounds in random order; times are
medians. "Bare passes" is the sum of the method's own forward and backward passes, each
compiled for itself and timed in the same rounds. PyTorch runs the paper's method as its
official CelebA trainer orders it (a copy of the model and two forward passes per task,
then a forward and a backward pass per task, SciPy's least squares for the weights),
written for this benchmark, on the same shapes.
"""


def bare_passes(model: Model, unroll: Any) -> dict[str, list[Timed]]:
    """The passes of which all methods' steps are made."""

    def task_loss(params, data, name):
        return model.losses(params, data)[name]

    def each(function):
        return [
            compiled(partial(function, name=name), model.params, model.data)
            for name in model.tasks
        ]

    def gradients(params, data):
        losses = partial(model.losses, data=data)
        return samo_jax.task_gradients(losses, params, unroll=unroll)

    def clean(params, data):
        return samo_jax.mean_value_and_grad(model.losses)(params, data)

    def task(params, data, name):
        return jax.value_and_grad(task_loss)(params, data, name)

    args = (model.params, model.data)
    return {
        "forward": [compiled(model.losses, *args)],
        "clean": [compiled(clean, *args)],
        "gradients": [compiled(gradients, *args)],
        "task forward": each(task_loss),
        "task": each(task),
    }


def measure(model: Model, rounds: int, unroll: Any) -> list[list[str]]:
    """Table rows of one model."""
    steps = {
        name: training_step(model, method, unroll) for name, method in METHODS.items()
    }
    passes = bare_passes(model, unroll)
    torch_step = Timed(step_torch.samo_step(model, RHO, ALPHA, MU), [])
    take_turns([*steps.values(), *chain(*passes.values()), torch_step], rounds)

    plain, rival = steps["FairGrad"].milliseconds, steps["F-MTL"].milliseconds
    rows = []
    for name, step in steps.items():
        limit = sum(
            count * sum(timed.milliseconds for timed in passes[kind])
            for kind, count in METHODS[name].passes.items()
        )
        ratios = (step.milliseconds / other for other in (limit, plain, rival))
        rows.append(
            [
                name,
                f"{step.milliseconds:.3g}",
                *(f"{ratio:.2f}" for ratio in ratios),
                f"{step.compile_seconds:.1f}",
                f"{step.temporary_bytes / 2**20:.3g}",
            ]
        )
    exact = steps["SAMO"].milliseconds
    slower = torch_step.milliseconds / exact
    rows.append(
        [
            f"SAMO in PyTorch: {slower:.1f} x our SAMO",
            f"{torch_step.milliseconds:.3g}",
            "-",
            f"{torch_step.milliseconds / plain:.2f}",
            f"{torch_step.milliseconds / rival:.2f}",
            "-",
            "-",
        ]
    )
    return rows


def main() -> None:
    """Measure every method on every model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--unroll", type=json.loads, default=None, help="null, true, false or a number"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    environment = "".join(
        f"{name}={shlex.quote(value)} "
        for name, value in sorted(os.environ.items())
        if name.startswith(("MALLOC_", "XLA_FLAGS"))
    )
    introduction = INTRODUCTION.format(
        title="Step benchmark with tuned flags" if environment else "Step benchmark",
        environment=environment,
        machine=machine("samo_jax", "jax", "torch", "scipy"),
        rounds=arguments.rounds,
        unroll=arguments.unroll,
    )
    page = Page(arguments.output, introduction)
    for name in track(arguments.models, console=page.console, transient=True):
        model = MODELS[name]()
        rows = measure(model, arguments.rounds, arguments.unroll)
        page.section(name, COLUMNS, rows, f"{model.description}.\n")


if __name__ == "__main__":
    main()
