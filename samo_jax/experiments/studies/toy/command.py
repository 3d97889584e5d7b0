"""The command of the toy study."""

import argparse
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import track

from samo_jax.experiments.command import (
    add_methods_argument,
    add_out_argument,
    make_console,
    seed,
)
from samo_jax.experiments.reports.machine import machine
from samo_jax.experiments.reports.pages import built_block, write_page
from samo_jax.experiments.reports.tables import (
    literal,
    markdown_table,
    terminal_table,
)
from samo_jax.experiments.studies.toy.descent import (
    TRAININGS,
    End,
    descend,
    ends_of,
    measure,
    setup_on,
)
from samo_jax.experiments.studies.toy.landscapes import LANDSCAPES, pareto_front
from samo_jax.experiments.studies.toy.plots import plot
from samo_jax.experiments.training.built import call_of
from samo_jax.experiments.training.folders import opened, results_folder
from samo_jax.experiments.training.grammar import MethodError
from samo_jax.experiments.training.methods import SINGLE_TASK, check_needs, method_of
from samo_jax.experiments.training.results import save

DESCRIPTION = """\
Draw how methods descend two losses of two parameters: combiners of the two gradients,
each plain and sharpness-aware. The landscapes are CAGrad's toy problem and one of our
own, in which each loss has two valleys of equal depth, and the sharp one comes first.
Reports where they end, how far from the Pareto front, and how sharp it is there."""

DEFAULT_METHODS = tuple(
    combiner + perturbation
    for combiner in ("mean", "mgda", "fairgrad")
    for perturbation in ("", "+global_sam", "+samo")
)


class Descent(NamedTuple):
    """Descent of all landscapes with one method.

    Attributes:
        ends: fields of an `End`, by landscape.
    """

    ends: dict[str, dict[str, Any]]


Descents = dict[str, dict[int, Descent]]  # by method, by seed


def summarize(results: Descents, name: str) -> list[list[str]]:
    """Cells of a landscape's table, header first, a row a method."""
    has_flat = LANDSCAPES[name].is_flat is not None
    header = ["method", "loss a", "loss b", "to the front", "sharpness"]
    rows = [[*header, "flat [%]"] if has_flat else header]
    for method, of_seed in results.items():
        (descent,) = of_seed.values()
        end = End(**descent.ends[name])
        numbers = [*end.losses.values(), end.distance, end.sharpness]
        flat = [] if end.flat is None else [f"{100 * end.flat:.0f}"]
        rows.append([method, *(f"{number:.2f}" for number in numbers), *flat])
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = DESCRIPTION
    add_methods_argument(parser, DEFAULT_METHODS)
    parser.add_argument(
        "--landscapes",
        nargs="+",
        choices=tuple(LANDSCAPES),
        default=list(LANDSCAPES),
        metavar="NAME",
        help=f"of {', '.join(LANDSCAPES)} (default: {' '.join(LANDSCAPES)})",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, help="of noise and probes (default: 0)"
    )
    add_out_argument(parser, "toy")


def run(args: argparse.Namespace) -> int:
    """Descend with every method; return the exit status."""
    console = make_console(120)
    built = _built(args.methods, args.landscapes)
    folder = results_folder(args.out, "toy")
    with opened(folder):
        _run(args, folder, built, console)
    return 0


def _built(texts: list[str], landscapes: list[str]) -> dict[str, dict[str, str]]:
    """The calls of the methods, by landscape."""
    methods = {text: method_of(text) for text in texts}
    try:
        if SINGLE_TASK in methods:
            wrong = "a landscape has no parameters of one task alone"
            raise MethodError(SINGLE_TASK, wrong)
        check_needs(methods.values(), (), "a landscape")
        return {
            name: {
                text: call_of(
                    method, setup_on(name, 0, jax.random.key(0)), jnp.zeros(2)
                )
                for text, method in methods.items()
            }
            for name in landscapes
        }
    except MethodError as error:
        raise SystemExit(f"--methods: {error}") from None


def _run(
    args: argparse.Namespace,
    folder: Path,
    built: Mapping[str, Mapping[str, str]],
    console: Console,
) -> None:
    """Descend, and write what comes of it."""
    jobs = list(product(args.landscapes, args.methods))
    # In threads, for most of the time goes into compilation.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(partial(descend, seed=args.seed), *zip(*jobs, strict=True))
        trajectories = list(track(done, "methods", len(jobs), console=console))
    paths = dict(zip(jobs, trajectories, strict=True))

    fronts = {name: pareto_front(LANDSCAPES[name]) for name in args.landscapes}
    results: Descents = {}
    for text in args.methods:
        ends = {
            name: measure(LANDSCAPES[name], front, ends_of(paths[name, text]))
            for name, front in fronts.items()
        }
        descent = Descent({name: end._asdict() for name, end in ends.items()})
        results[text] = {args.seed: descent}
    save(folder, {**vars(args), "out": str(folder), "built": built}, results)

    parts = []
    for name, front in fronts.items():
        drawn = {text: paths[name, text] for text in args.methods}
        ends = {text: ends_of(path) for text, path in drawn.items()}
        plot(LANDSCAPES[name], front, drawn, ends, folder / f"{name}.png")
        rows, caption = summarize(results, name), _caption(name)
        parts += [f"## {name}", markdown_table(rows), literal(caption)]
        parts += [f"![Trajectories]({name}.png)", built_block(built[name])]
        console.print(terminal_table(rows, caption))
    parts.append(f"On {machine('samo_jax', 'jax', 'optax')}")
    pictures = [f"{name}.png" for name in fronts]
    write_page(folder, "Two losses of two parameters", "\n\n".join(parts), pictures)
    files = ["report.html", "report.md", "results.json", *pictures]
    console.print(f"Saved {', '.join(files)} in {folder}")


def _caption(name):
    _, steps, rho = TRAININGS[name]
    return (
        f"{name}: mean over {len(LANDSCAPES[name].starts)} starts after {steps} steps, "
        f"rho {rho:g} where a method does not set it. To the front: distance in losses "
        "to the Pareto front. Sharpness: largest eigenvalue of the mean loss's Hessian."
    )
