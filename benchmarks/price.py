"""The price of a step relative to plain training, exact and in cheaper forms."""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import jax
from page import Page
from step_clock import Timed, take_turns, training_step
from step_methods import PLAIN, RHO, Method, f_mtl, multitask, two_points
from step_models import MODELS, Model

import samo_jax
from samo_jax.experiments.reports.machine import machine

OUTPUT = Path(__file__).parents[1] / "docs" / "price_benchmark.md"
ROUNDS, EVERY = 15, 10
COMBINERS = {
    "FairGrad": samo_jax.fairgrad(2.0),
    "MGDA": samo_jax.mgda(),
    "UPGrad": samo_jax.upgrad(),
}
PERTURBATIONS = {
    "plain": None,
    "global SAM": samo_jax.global_sam(RHO),
    "SAMO, two points": two_points,
}
FORMS: dict[str, dict[str, Any]] = {
    "exact": {},
    "representation": {"gramian_of": "representation"},
    f"kept {EVERY}": {"weights_every": EVERY},
    "both": {"gramian_of": "representation", "weights_every": EVERY},
}
COLUMNS = ["method", "form", "step / plain", "compile s", "temporary MB"]
INTRODUCTION = """\
# Price benchmark

Written by `python benchmarks/price.py` on {machine}

Training steps with SGD, compiled with `jax.jit`, relative to one on the plain mean
loss. All steps of one combiner take turns, {rounds} rounds in random order; ratios are
of medians. With weights kept for {every} steps, it is the mean of one step that takes
them and {others} that do not.
"""


def steps(combiner: str) -> dict[tuple[str, str], Method]:
    """Plain training, the mean with each perturbation, and a combiner in each form."""
    found = {("mean", "plain"): PLAIN}
    for name, perturbation in PERTURBATIONS.items():
        clean_pass = perturbation is not None
        if clean_pass:
            mean = multitask(perturbation, samo_jax.mean())
            found[f"mean + {name}", "exact"] = Method(mean, {})
        for form, settings in FORMS.items():
            transform = multitask(perturbation, COMBINERS[combiner], **settings)
            found[f"{combiner} + {name}", form] = Method(transform, {}, clean_pass)
    for form, settings in FORMS.items():
        transform = f_mtl(COMBINERS[combiner], direction="global", **settings)
        found[f"{combiner}, F-MTL, common", form] = Method(transform, {}, False)
    return found


def measure(model: Model, combiner: str, rounds: int) -> list[list[str]]:
    """Table rows of one combiner with one model."""
    # Memory for compiled programs is limited.
    jax.clear_caches()
    timed = {
        key: training_step(model, method, None)
        for key, method in steps(combiner).items()
    }
    # These steps keep weights; those that take them cost what the form alone costs.
    take_turns(list(timed.values()), rounds)
    plain = timed["mean", "plain"]

    def price(method: str, form: str, step: Timed) -> float:
        renewal = {f"kept {EVERY}": "exact", "both": "representation"}.get(form)
        if renewal is None:
            return step.milliseconds / plain.milliseconds
        dear = timed[method, renewal].milliseconds
        cheap = step.milliseconds * (EVERY - 1)
        return (dear + cheap) / EVERY / plain.milliseconds

    return [
        [
            *key,
            f"{price(*key, step):.2f}",
            f"{step.compile_seconds:.1f}",
            f"{step.temporary_bytes / 2**20:.3g}",
        ]
        for key, step in timed.items()
    ]


def main() -> None:
    """Measure every form on the models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["cnn40"])
    parser.add_argument(
        "--combiners", nargs="+", choices=COMBINERS, default=list(COMBINERS)
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    introduction = INTRODUCTION.format(
        machine=machine("samo_jax", "jax"),
        rounds=arguments.rounds,
        every=EVERY,
        others=EVERY - 1,
    )
    page = Page(arguments.output, introduction)
    for name, combiner in product(arguments.models, arguments.combiners):
        model = MODELS[name]()
        rows = measure(model, combiner, arguments.rounds)
        page.section(f"{name}, {combiner}", COLUMNS, rows, f"{model.description}.\n")


if __name__ == "__main__":
    main()
