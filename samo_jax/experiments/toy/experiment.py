"""The toy experiment: where do methods end on landscapes that can be drawn?"""

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from rich.console import Console
from rich.progress import track

import samo_jax
from samo_jax.experiments.benchmarks import methods
from samo_jax.experiments.command import (
    add_out_argument,
    make_console,
    results_folder,
    seed,
)
from samo_jax.experiments.folders import opened
from samo_jax.experiments.tables import markdown_table, save, terminal_table
from samo_jax.experiments.toy.landscapes import (
    LANDSCAPES,
    Front,
    Landscape,
    Losses,
    distance_to_front,
    pareto_front,
    stacked_losses,
)
from samo_jax.experiments.toy.plots import plot

DESCRIPTION = """\
Draw how methods descend two losses of two parameters: combiners of the two gradients,
each plain and sharpness-aware. The landscapes are CAGrad's toy problem and one of our
own, in which each loss has two valleys of equal depth, and the sharp one comes first.
Reports where they end, how far from the Pareto front, and how sharp it is there."""

COMBINERS = ("mean", "mgda", "fairgrad", "nash_mtl", "cagrad", "pcgrad", "upgrad")

_multitask = partial(samo_jax.multitask, num_tasks=2)
SHARPNESS: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "plain": lambda solver, _rho, _key: _multitask(solver),
    "global": lambda solver, rho, _: _multitask(solver, samo_jax.global_sam(rho)),
    "local": lambda solver, rho, _: _multitask(solver, samo_jax.local_sam(rho)),
    "samo": lambda solver, rho, key: samo_jax.samo(solver, rho, num_tasks=2, key=key),
    "memory": lambda solver, rho, _: _multitask(solver, samo_jax.memory_sam(rho)),
    "f-mtl": lambda solver, rho, _: samo_jax.f_mtl(solver, rho, num_tasks=2),
}

_LAST = 50  # steps whose mean is the end of a trajectory


class Training(NamedTuple):
    """Settings of the descent of a landscape.

    Attributes:
        optimizer: optimiser after the multi-task transformation.
        steps: number of steps.
        rho: radius.
    """

    optimizer: optax.GradientTransformation
    steps: int
    rho: float


TRAININGS = {
    "cagrad": Training(optax.adam(0.01), 3000, 0.5),
    "valleys": Training(
        optax.chain(optax.clip_by_global_norm(2.0), optax.sgd(0.08)), 1000, 0.3
    ),
}


class End(NamedTuple):
    """The end of a method on a landscape, mean over starts.

    Attributes:
        losses: losses of each task.
        distance: distance to the Pareto front, in losses.
        sharpness: largest eigenvalue of the mean loss's Hessian.
        flat: share of starts that end in a flat valley; None where there is none.
    """

    losses: dict[str, float]
    distance: float
    sharpness: float
    flat: float | None


class Run(NamedTuple):
    """Results of one method.

    Attributes:
        ends: fields of an `End`, by landscape.
    """

    ends: dict[str, dict[str, Any]]


Results = dict[str, dict[int, Run]]  # by method, by seed


def method_name(combiner: str, sharpness: str) -> str:
    """The name as in the other experiments: a combiner alone is plain."""
    return combiner if sharpness == "plain" else f"{combiner}+{sharpness}"


def descend(name: str, combiner: str, sharpness: str, seed: int) -> np.ndarray:
    """The trajectories from all starts, each with noise of its own.

    Args:
        name: name of the landscape.
        combiner: one of `COMBINERS`.
        sharpness: a key of `SHARPNESS`.
        seed: seed of the noise, the probes and the combiner's draws.

    Returns:
        The params, shape (N, steps + 1, 2).
    """
    landscape, (optimizer, steps, rho) = LANDSCAPES[name], TRAININGS[name]

    def from_start(start_and_key):
        start, key = start_and_key
        noise_key, probe_key, combiner_key = jax.random.split(key, 3)
        solver = methods.COMBINERS[combiner](methods.Setting(combiner_key, steps, 2))
        tx = optax.chain(SHARPNESS[sharpness](solver, rho, probe_key), optimizer)

        def train_step(carry, shift):
            params, opt_state = carry

            def loss_fn(params):
                return landscape.losses(params + shift)

            _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
            updates, opt_state = tx.update(grads, opt_state, params, loss_fn=loss_fn)
            params = optax.apply_updates(params, updates)
            return (params, opt_state), params

        shifts = landscape.noise * jax.random.normal(noise_key, (steps, 2))
        _, path = jax.lax.scan(train_step, (start, tx.init(start)), shifts)
        return jnp.concatenate([start[None], path])

    keys = jax.random.split(jax.random.key(seed), len(landscape.starts))
    # One by one: batched, the solvers' loops take longer to compile and to run, and
    # their factorisations could wait for each other's threads.
    descend_all = jax.jit(partial(jax.lax.map, from_start))
    return np.asarray(descend_all((landscape.starts, keys)))


def ends_of(paths: np.ndarray) -> np.ndarray:
    """The mean of the last steps, over which noise averages out, shape (N, 2)."""
    return paths[:, -_LAST:].mean(axis=1)


@partial(jax.jit, static_argnums=0)
def sharpness_at(losses: Callable[[jax.Array], Losses], params: ArrayLike) -> jax.Array:
    """Largest eigenvalue of the mean loss's Hessian at params (N, 2), shape (N,)."""

    def mean_loss(params):
        return sum(losses(params).values()) / 2

    return jnp.linalg.eigvalsh(jax.vmap(jax.hessian(mean_loss))(params))[:, -1]


def measure(landscape: Landscape, front: Front, ends: np.ndarray) -> End:
    """The means over ends of shape (N, 2)."""
    losses = stacked_losses(landscape, ends)
    loss_a, loss_b = losses.mean(axis=0).tolist()
    return End(
        {"a": loss_a, "b": loss_b},
        float(distance_to_front(losses, front).mean()),
        float(sharpness_at(landscape.losses, ends).mean()),
        float(landscape.is_flat(ends).mean()) if landscape.is_flat else None,
    )


def summarize(results: Results, name: str) -> list[list[str]]:
    """A landscape's cells, header first, a row a method."""
    has_flat = LANDSCAPES[name].is_flat is not None
    header = ["method", "loss a", "loss b", "to the front", "sharpness"]
    rows = [[*header, "flat %"] if has_flat else header]
    for method, runs in results.items():
        (run,) = runs.values()
        end = End(**run.ends[name])
        numbers = [*end.losses.values(), end.distance, end.sharpness]
        flat = [] if end.flat is None else [f"{100 * end.flat:.0f}"]
        rows.append([method, *(f"{number:.2f}" for number in numbers), *flat])
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = DESCRIPTION
    for option, choices, default, summary in (
        ("--combiners", COMBINERS, ["mean", "mgda", "fairgrad"], "of gradients"),
        ("--sharpness", SHARPNESS, ["plain", "global", "samo"], "where they are taken"),
        ("--landscapes", LANDSCAPES, list(LANDSCAPES), "to descend"),
    ):
        parser.add_argument(
            option,
            nargs="+",
            choices=tuple(choices),
            default=default,
            metavar="NAME",
            help=f"{summary}: {', '.join(choices)} (default: {' '.join(default)})",
        )
    parser.add_argument(
        "--seed", type=seed, default=0, help="of noise and probes (default: 0)"
    )
    add_out_argument(parser, "toy")


def run(args: argparse.Namespace) -> int:
    """Descend with every method; return the exit status."""
    console = make_console(120)
    folder = results_folder(args.out, "toy")
    with opened(folder):
        _run(args, folder, console)
    return 0


def _run(args: argparse.Namespace, folder: Path, console: Console) -> None:
    """Descend, and write what comes of it."""
    variants = list(product(args.combiners, args.sharpness))
    jobs = [(name, *variant) for name in args.landscapes for variant in variants]
    # In threads, for most of the time goes into compilation.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(partial(descend, seed=args.seed), *zip(*jobs, strict=True))
        trajectories = list(track(done, "methods", len(jobs), console=console))
    paths = dict(zip(jobs, trajectories, strict=True))

    fronts = {name: pareto_front(LANDSCAPES[name]) for name in args.landscapes}
    results: Results = {}
    for variant in variants:
        ends = {
            name: measure(LANDSCAPES[name], front, ends_of(paths[name, *variant]))
            for name, front in fronts.items()
        }
        run = Run({name: end._asdict() for name, end in ends.items()})
        results[method_name(*variant)] = {args.seed: run}
    save(folder, {**vars(args), "out": str(folder)}, results)

    tables = []
    for name, front in fronts.items():
        drawn = {variant: paths[name, *variant] for variant in variants}
        ends = {variant: ends_of(path) for variant, path in drawn.items()}
        plot(LANDSCAPES[name], front, drawn, ends, folder / f"{name}.png")
        rows, caption = summarize(results, name), _caption(name)
        tables.append(f"{markdown_table(rows)}\n{caption}\n")
        console.print(terminal_table(rows, caption))
    (folder / "table.md").write_text("\n".join(tables))
    files = ["table.md", "results.json", *(f"{name}.png" for name in fronts)]
    console.print(f"Saved {', '.join(files)} in {folder}")


def _caption(name):
    _, steps, rho = TRAININGS[name]
    return (
        f"{name}: mean over {len(LANDSCAPES[name].starts)} starts after {steps} steps, "
        f"rho {rho:g}. To the front: distance in losses to the Pareto front. "
        "Sharpness: largest eigenvalue of the mean loss's Hessian."
    )
