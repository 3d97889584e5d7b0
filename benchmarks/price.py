"""The price of a step relative to plain training, exact and in cheaper forms."""

import argparse
from functools import partial, reduce
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import price_torch
from page import Page
from rich.progress import track
from step_clock import Timed, compiled, take_turns
from step_methods import MU, PLAIN, RHO, Method, f_mtl, make_step, multitask, two_points
from step_models import MODELS, Model, cnn, transformer

import samo_jax
from samo_jax.experiments.reports.machine import machine

OUTPUT = Path(__file__).parents[1] / "docs" / "evidence" / "price.md"
ROUNDS, EVERY = 7, 10
ENCODER = partial(
    transformer,
    layers=4,
    width=128,
    vocabulary=1024,
    batch=(16, 64),
    compute=jnp.float32,
)
COMBINERS = {
    "FairGrad": samo_jax.fairgrad(2.0),
    "UPGrad": samo_jax.upgrad(),
    "MGDA": samo_jax.mgda(),
}
# Those whose points tasks share have all forms.
SHARED = {
    "plain": None,
    "global SAM": samo_jax.global_sam(RHO),
    "SAMO, shared probe": two_points,
}
FORMS: dict[str, dict[str, Any]] = {
    "exact": {},
    "representation": {"gramian_of": "representation"},
    f"kept {EVERY}": {"weights_every": EVERY},
    "both": {"gramian_of": "representation", "weights_every": EVERY},
}
KEPT = [f"kept {EVERY}", "both"]
CHEAP = ["representation", "both"]
COLUMNS = ["method", *FORMS]
COSTS = "Seconds to trace and compile, and temporary memory in MB:"
TORCH_COLUMNS = ["method", "way", "step / our plain", "step / its plain"]
INTRODUCTION = """\
# Price of a step

Written by `python benchmarks/price.py` on {machine}

Training steps with SGD, compiled with `jax.jit`, relative to one on the plain mean
loss. Each method comes in up to four forms: exact; with `gramian_of="representation"`;
with `weights_every={every}`; with both. All steps of one combiner take turns, {rounds}
rounds in random order; ratios are of medians. With weights kept for {every} steps, the
number is the mean of one step that takes them and {others} that do not.

What the forms cost in quality is on [a page of its own](kept_weights.md).

PyTorch's steps ran in the same rounds, on the same shapes and two threads. TorchJD is
used in both of its ways. LibMTL's order of `rep_grad` was written for this benchmark.
"""


def ours(combiners: list[str]) -> dict[tuple[str, str], Method]:
    """Plain training, the mean with each perturbation, and combiners in each form."""
    samo = samo_jax.joint_sam(RHO, local=samo_jax.probe(MU))
    found = {("mean + plain", "exact"): PLAIN}
    for name, perturbation in (SHARED | {"SAMO": samo}).items():
        clean_pass = perturbation is not None
        forms = FORMS if name in SHARED else {"exact": {}}
        if clean_pass:
            mean = multitask(perturbation, samo_jax.mean())
            found[f"mean + {name}", "exact"] = Method(mean, {})
        for combiner in combiners:
            for form, settings in forms.items():
                transform = multitask(perturbation, COMBINERS[combiner], **settings)
                found[f"{combiner} + {name}", form] = Method(transform, {}, clean_pass)
    for combiner in combiners:
        local = f_mtl(COMBINERS[combiner])
        found[f"{combiner} + F-MTL", "exact"] = Method(local, {})
        for form, settings in FORMS.items():
            transform = f_mtl(COMBINERS[combiner], direction="global", **settings)
            key = f"{combiner} + F-MTL, common", form
            found[key] = Method(transform, {}, clean_pass=False)
    return found


def compiled_steps(
    model: Model, methods: dict[tuple[str, str], Method]
) -> dict[tuple[str, ...], Timed]:
    """The methods' steps; of those that keep weights, also the step that takes them."""
    # Memory for compiled programs is limited.
    jax.clear_caches()
    found = {}
    for key, method in track(methods.items(), "Compiling", transient=True):
        step, state = make_step(model, method, None)
        args = model.params, state, model.data
        found[key] = compiled(step, *args, warm_up=True)
        if key[1] in KEPT:
            # The first state has no weights to keep.
            call = partial(cast(partial, found[key].call).func, *args)
            found[(*key, "taken")] = Timed(call, [])
    return found


def milliseconds(timed: dict[tuple[str, ...], Timed], *key: str) -> float:
    """Time of a step, on average over steps that take weights and that keep them."""
    step = timed[key].milliseconds
    if (*key, "taken") not in timed:
        return step
    return (timed[*key, "taken"].milliseconds + (EVERY - 1) * step) / EVERY


def by_form(cells: dict[tuple[str, str], str]) -> list[list[str]]:
    """Table rows of methods, a column for each form."""
    methods = dict.fromkeys(method for method, _ in cells)
    return [
        [method, *(cells.get((method, form), "") for form in FORMS)]
        for method in methods
    ]


def measure(model: Model, combiner: str, rounds: int) -> tuple[dict, dict, dict]:
    """Steps of one combiner on a model, what they cost else, and PyTorch's steps."""
    methods = ours([combiner])
    timed = compiled_steps(model, methods)
    in_torch = {
        key: Timed(step, [])
        for key, step in price_torch.steps(model, RHO).items()
        if key[0].partition(" + ")[0] in ("mean", combiner)
    }
    take_turns([*timed.values(), *in_torch.values()], rounds)
    plain = timed["mean + plain", "exact"].milliseconds
    steps = {key: f"{milliseconds(timed, *key) / plain:.2f}" for key in methods}
    costs = {
        key: f"{timed[key].compile_seconds:.1f}, "
        f"{timed[key].temporary_bytes / 2**20:.3g}"
        for key in methods
    }
    its_plain = in_torch["mean + plain", "backward"].milliseconds
    ratios = {
        key: [f"{step.milliseconds / one:.2f}" for one in (plain, its_plain)]
        for key, step in in_torch.items()
    }
    return steps, costs, ratios


def grow(tasks: list[int], rounds: int) -> list[list[str]]:
    """Table rows of the cheap forms of FairGrad, a column for each number of tasks."""
    plain = "mean + plain", "exact"
    cells: dict[tuple[str, str], list[str]] = {}
    for num_tasks in tasks:
        model = cnn(num_tasks)
        for key, method in ours(["FairGrad"]).items():
            if key[1] not in CHEAP or "SAMO" in key[0]:
                continue
            # One at a time, for memory, and with plain training beside it.
            timed = compiled_steps(model, {plain: PLAIN, key: method})
            take_turns(list(timed.values()), rounds)
            ratio = milliseconds(timed, *key) / timed[plain].milliseconds
            cells.setdefault(key, []).append(f"{ratio:.2f}")
            del timed
    return [[*key, *ratios] for key, ratios in cells.items()]


def main() -> None:
    """Measure every form on the models."""
    models = MODELS | {"encoder8": ENCODER}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", choices=models, default=list(models))
    parser.add_argument(
        "--combiners", nargs="+", choices=COMBINERS, default=list(COMBINERS)
    )
    parser.add_argument("--growth", type=int, nargs="*", default=[8, 32, 128, 256])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    introduction = INTRODUCTION.format(
        machine=machine("samo_jax", "jax", "torch", "torchjd"),
        rounds=arguments.rounds,
        every=EVERY,
        others=EVERY - 1,
    )
    page = Page(arguments.output, introduction)
    for name in arguments.models:
        model = models[name]()
        # One combiner after the other: a process can map some thousand programs.
        parts = [
            measure(model, combiner, arguments.rounds)
            for combiner in arguments.combiners
        ]
        # Rows of the mean are those of the first.
        steps, costs, in_torch = (
            reduce(lambda found, more: found | more | found, of_all)
            for of_all in zip(*parts, strict=True)
        )
        page.section(name, COLUMNS, by_form(steps), f"{model.description}.\n")
        title = f"{name}, compilation and memory"
        page.section(title, COLUMNS, by_form(costs), f"{COSTS}\n")
        rows = [[*key, *ratios] for key, ratios in in_torch.items()]
        page.section(f"{name} in PyTorch", TORCH_COLUMNS, rows)
    if arguments.growth:
        text = (
            "The CNN with more and more tasks, each with a head of its own. Relative "
            "to plain training with as many tasks.\n"
        )
        columns = [
            "method",
            "form",
            *(f"{number} tasks" for number in arguments.growth),
        ]
        rows = grow(arguments.growth, arguments.rounds)
        page.section("Growth with the number of tasks", columns, rows, text)


if __name__ == "__main__":
    main()
