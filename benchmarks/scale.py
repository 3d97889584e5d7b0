"""What a step costs with many tasks and parameters: how far the cost model holds."""

import argparse
import math
import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import step
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from page import Page
from scale_costs import METHODS, Method

import samo_jax
from samo_jax.experiments.reports.machine import machine

OUTPUT = Path(__file__).parents[1] / "docs" / "scale_benchmark.md"
TASKS = [16, 64]
SIZES = [10**5, 10**6]
EXAMPLES = 256
ROUNDS = 3
LAYERS = 3
DEVICES = 8
EXCHANGING_TASKS = 8
MOST_EVALUATIONS = 200  # of a step that is timed
LARGE = SimpleNamespace(
    parameters=1e9,
    tasks=1000,
    examples=2**20,
    devices=(64, 512),
    operations=4e14,  # a second
    bandwidth=5e10,  # bytes a second
)

MEASURED = ["method", "step ms", "passes, model", "measured", "ratio"]
MEASURED += ["copies, model", "measured", "ratio"]
EXCHANGED = ["parameters", "method", "gathered, model", "measured", "ratio"]
EXCHANGED += ["summed, model", "measured", "ratio"]
EXTRAPOLATED = ["method", "passes", "computing s"]
EXTRAPOLATED += ["sharded: exchange s", "GB", "copies: exchange s", "GB"]
INTRODUCTION = """\
Written by `python benchmarks/scale.py` on {machine}

The cost model behind [large models, many tasks](scale.md), against measurements. Steps
with FairGrad (or `mean`) and SGD, clean pass included, tasks in a loop, a network of
{layers} layers, {examples} examples. A pass is one forward and one backward pass of the
mean loss, compiled for itself and timed in the same rounds; {rounds} rounds, medians.
The model's passes include the Gramian's operations, and random numbers at the measured
time of drawing as many as parameters. Copies are of the parameters: temporary memory as
XLA reports it, less that of the bare pass (memory's new gradients are a part of the
result, which it does not count). The ratio is measured / model.
"""
EXCHANGE = f"""\
Results of all collectives of the compiled program, in copies of the parameters, K =
{EXCHANGING_TASKS}: parameters on all devices, or fully sharded; batches are shared out.
XLA for CPUs sums gradients as a whole before it scatters them.
"""
LARGER = f"""\
The model's numbers for {LARGE.parameters:.0e} parameters, K = {LARGE.tasks}, a batch of
{LARGE.examples} tokens, devices of {LARGE.operations:.0e} operations and
{LARGE.bandwidth:.0e} exchanged bytes a second. Nothing was run. Memory is with Adam,
without activations; fully sharded, with one point and one gradient as a whole on every
device. (Over several devices XLA for CPUs transposes all gradients for the Gramian: as
much memory again.)
"""


# Of which every loop's turns are known to the compiler.
EXCHANGING = [name for name in METHODS if not name.startswith("SAMO, block")]


def problem(num_parameters: int, num_tasks: int, num_examples: int) -> Any:
    """Regressions by a network of about as many parameters, all shared."""
    width = round((num_parameters / LAYERS) ** 0.5)
    rng = np.random.default_rng(0)
    shapes = [(width, width)] * LAYERS + [(width, num_tasks)]
    params = [
        jnp.asarray(rng.normal(size=shape) * (2 / width) ** 0.5, jnp.float32)
        for shape in shapes
    ]
    data = rng.normal(size=(num_examples, width)).astype(np.float32)

    def losses(params, data):
        hidden = data
        for kernel in params[:-1]:
            hidden = jax.nn.relu(hidden @ kernel)
        return jnp.mean(jnp.square(hidden @ params[-1] - 1), axis=0)

    return SimpleNamespace(params=params, losses=losses, data=data, num_tasks=num_tasks)


def training_step(model: Any, method: Method) -> step.Timed:
    """The whole step, with SGD."""
    transform = method.transform(model.num_tasks)
    made = step.Method(lambda *_: transform, {}, method.clean_pass)
    return step.training_step(model, made, unroll=False)


def measure(model: Any, rounds: int) -> list[list[str]]:
    """Time and memory of all methods against the model's."""
    num_tasks, num_examples = model.num_tasks, len(model.data)
    steps = {
        name: training_step(model, method)
        for name, method in METHODS.items()
        if method.cost(num_tasks).backward <= MOST_EVALUATIONS
    }
    gradient = step.compiled(
        samo_jax.mean_value_and_grad(model.losses), model.params, model.data
    )
    key = jax.random.key(0)
    draw = step.compiled(partial(optax.tree.random_like, target_tree=model.params), key)
    step.take_turns([gradient, draw, *steps.values()], rounds)

    size = sum(leaf.nbytes for leaf in model.params)
    rows = []
    for name, timed in steps.items():
        cost = METHODS[name].cost(num_tasks)
        passes = cost.passes(num_examples)
        passes += cost.draws * draw.milliseconds / gradient.milliseconds
        measured = timed.milliseconds / gradient.milliseconds
        activations = gradient.temporary_bytes
        copies = (timed.temporary_bytes - activations) / size
        rows.append(
            [
                name,
                f"{timed.milliseconds:.3g}",
                *compared(passes, measured),
                *compared(cost.copies, copies),
            ]
        )
    return rows


def compared(predicted: float, measured: float) -> list[str]:
    """Both, and their ratio."""
    ratio = f"{measured / predicted:.2f}" if predicted else "-"
    return [f"{predicted:.4g}", f"{measured:.3g}", ratio]


# What devices exchange


def exchanged() -> list[list[str]]:
    """Copies of the parameters that collectives hand out, against the model's."""
    mesh = jax.make_mesh((DEVICES,), ("devices",), axis_types=(AxisType.Auto,))
    model = problem(LAYERS * 64**2, EXCHANGING_TASKS, 8 * DEVICES)
    size = sum(leaf.nbytes for leaf in model.params)

    def put(tree, *spec):
        return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))

    model.data = put(model.data, "devices")
    rows = []
    for spec, sharding in ((), "copies"), (("devices",), "fully sharded"):
        model.params = put(model.params, *spec)
        for name in EXCHANGING:
            method = METHODS[name]
            cost = method.cost(EXCHANGING_TASKS)
            compiled = training_step(model, method).call.func
            found = collective_bytes(compiled.as_text())
            gathered = compared(
                cost.gathered if spec else 0, found["all-gather"] / size
            )
            reduced = compared(cost.reduced, found["all-reduce"] / size)
            rows.append([sharding, name, *gathered, *reduced])
    return rows


def collective_bytes(program: str) -> Counter[str]:
    """Bytes that each kind of collective returns, loops' as often as they turn."""
    pattern = r"^(ENTRY )?%?([\w.-]+) \([^\n]*\{\n(.*?)^\}"
    parts = re.findall(pattern, program, re.MULTILINE | re.DOTALL)
    entry = next(name for is_entry, name, _ in parts if is_entry)
    return _collective_bytes({name: body for _, name, body in parts}, entry)


def _collective_bytes(bodies: dict[str, str], name: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for line in bodies[name].splitlines():
        if found := re.search(r"= (.*?) (all-gather|all-reduce)(?:-start)?\(", line):
            sizes = re.findall(r"f32\[([\d,]*)\]", found[1])
            total[found[2]] += sum(
                4 * math.prod(int(n) for n in size.split(",") if n) for size in sizes
            )
        for body in re.findall(r"(?:body|to_apply|_computation)=%([\w.-]+)", line):
            turns = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            inner = _collective_bytes(bodies, body)
            for kind, size in inner.items():
                total[kind] += size * (int(turns[1]) if turns else 1)
    return total


def in_process_of_devices(function: Callable[[], Any]) -> Any:
    """Its result in a process of its own, with many devices."""
    with ProcessPoolExecutor(
        1,
        mp_context=get_context("spawn"),
        initializer=_use_devices,
    ) as pool:
        return pool.submit(function).result()


def _use_devices() -> None:
    jax.config.update("jax_num_cpu_devices", DEVICES)


# Where nobody has measured


def extrapolated(num_devices: int) -> list[list[str]]:
    """Seconds and memory of a step of LARGE by the model."""
    rows = []
    for name, method in METHODS.items():
        cost = method.cost(LARGE.tasks)
        copy = 4 * LARGE.parameters  # bytes
        passes = cost.passes(LARGE.examples)
        operations = 6 * LARGE.parameters * LARGE.examples * passes
        # With the parameters, Adam's moments and g0.
        held = (cost.copies + cost.kept + 4) * copy
        rows.append(
            [
                name,
                f"{passes:.4g}",
                f"{operations / num_devices / LARGE.operations:.3g}",
                f"{(cost.gathered + cost.reduced) * copy / LARGE.bandwidth:.3g}",
                f"{(held / num_devices + 2 * copy) / 1e9:.3g}",
                f"{2 * cost.reduced * copy / LARGE.bandwidth:.3g}",
                f"{held / 1e9:.3g}",
            ]
        )
    return rows


def main() -> None:
    """Measure, compare, extrapolate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="*", default=TASKS)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    introduction = INTRODUCTION.format(
        machine=machine("samo_jax", "jax"),
        rounds=arguments.rounds,
        examples=EXAMPLES,
        layers=LAYERS,
    )
    page = Page(arguments.output, f"# Scale benchmark\n\n{introduction}")
    start = time.perf_counter()
    for size in arguments.sizes:
        for num_tasks in arguments.tasks:
            rows = measure(problem(size, num_tasks, EXAMPLES), arguments.rounds)
            page.section(f"K = {num_tasks}, {size:.0e} parameters", MEASURED, rows)
    rows = in_process_of_devices(exchanged)
    page.section(f"Exchanged by {DEVICES} devices", EXCHANGED, rows, EXCHANGE)
    for num_devices in LARGE.devices:
        title = f"Extrapolated: {num_devices} devices"
        page.section(title, EXTRAPOLATED, extrapolated(num_devices), LARGER)
    page.console.print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
