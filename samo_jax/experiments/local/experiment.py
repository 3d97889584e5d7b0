"""The local experiment: which local part of SAMO's perturbation is worth its cost?"""

import argparse
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from rich.console import Console

from samo_jax.experiments.benchmarks.methods import SINGLE_TASK
from samo_jax.experiments.command import (
    add_count_argument,
    add_out_argument,
    epochs_progress,
    make_console,
    positive_int,
)
from samo_jax.experiments.configuration import (
    add_file_arguments,
    resumable,
    settings,
)
from samo_jax.experiments.folders import inside
from samo_jax.experiments.local.looks import Look
from samo_jax.experiments.local.methods import METHODS, PLAIN
from samo_jax.experiments.local.problems import PROBLEMS
from samo_jax.experiments.local.report import Results, plot, summarize
from samo_jax.experiments.local.training import (
    Cost,
    Run,
    SingleTaskTrainer,
    Trainer,
)
from samo_jax.experiments.tables import load, markdown_table, save, terminal_table

DESCRIPTION = """\
Train small networks with 2, 11 and 40 tasks with FairGrad and every local part of
SAMO's perturbation, beside plain training, global SAM, L-SAM, F-MTL and a control whose
local part has a random sign; look at where the local parts point and what they cost."""

RHOS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
_FIRST_TUNING_SEED = 1000
_TIMED_ROUNDS = 25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = DESCRIPTION
    for option, choices in (("--problems", PROBLEMS), ("--methods", METHODS)):
        parser.add_argument(
            option,
            nargs="+",
            choices=choices,
            default=list(choices),
            metavar=option.strip("-").upper().removesuffix("S"),
            help=f"of {', '.join(choices)} (default: all)",
        )
    add_count_argument(parser, "--seeds", 5, "number of seeds")
    tuning = "others, by which the radius is chosen"
    add_count_argument(parser, "--tuning-seeds", 3, tuning)
    parser.add_argument(
        "--epochs", type=positive_int, help="epochs per run (default: the problem's)"
    )
    add_file_arguments(parser)
    add_out_argument(parser, "local")


def run(args: argparse.Namespace) -> int:
    """Train every problem with every method and seed; return the exit status."""
    console = make_console(120)
    results: Results = {}
    pages = []
    with resumable(args, "local") as folder:
        for name in args.problems:
            inside(folder, name).mkdir(exist_ok=True)
            title, *results[title] = _train(name, args, folder / name, console)
            rows = summarize(*results[title])
            pages.append(f"## {title}\n\n{markdown_table(rows)}")
            (folder / "table.md").write_text("\n".join([*pages, _caption(args), ""]))
            plot(results, folder / "local.png")
            console.print(terminal_table(rows, title))
    console.print(_caption(args))
    console.print(f"Saved table.md, local.png and results.json by problem in {folder}")
    return 0


def _train(
    name: str, args: argparse.Namespace, folder: Path, console: Console
) -> tuple[str, dict[str, dict[int, Run]], Mapping[str, Cost]]:
    """Title, runs and costs of one problem; what the folder has is not run again."""
    validation, test = (
        problem._replace(epochs=args.epochs or problem.epochs)
        for problem in map(PROBLEMS[name], ("validation", "test"))
    )
    title = f"{name}, {len(test.tasks)} tasks"
    methods = [SINGLE_TASK, *args.methods]
    saved, runs = load(
        folder,
        Run,
        methods,
        args.seeds,
        lambda _, run: _fault(run, test.tasks),
        _Measured,
    )
    scores = saved.validation_error if saved else {}
    costs = saved.costs if saved else {}
    if _is_complete(costs, runs, methods, args.seeds):
        return title, runs, costs
    config = {**settings(args), "problem": name, "rhos": RHOS}
    config["validation_error"] = scores
    trainers: dict[str, Trainer] = {}
    with epochs_progress(console, max(map(len, methods)) + 20) as progress:
        count = len(RHOS) * args.tuning_seeds * sum(map(_has_radius, methods))
        count += len(methods) * args.seeds
        tried = [of_seeds for errors in scores.values() for of_seeds in errors.values()]
        count -= sum(map(len, [*tried, *runs.values()]))
        bar = progress.add_task("", total=count * test.epochs)

        def train(trainer, problem, rho, seed, method):
            progress.update(bar, description=f"{method}, rho {rho:g}, seed {seed}")
            return trainer.run(problem, rho, seed, lambda: progress.advance(bar))

        def tune(trainer, method):
            errors = scores.setdefault(method, {})
            for rho in RHOS:
                of_seeds = errors.setdefault(str(rho), [])
                for number in range(len(of_seeds), args.tuning_seeds):
                    seed = _FIRST_TUNING_SEED + number
                    error = train(trainer, validation, rho, seed, method).error
                    of_seeds.append(float(np.mean(list(error.values()))))
                    save(folder, config, runs)
            # A radius with which training diverges is the worst.
            means = {rho: np.mean(errors[str(rho)]) for rho in RHOS}
            return min(means, key=lambda rho: np.nan_to_num(means[rho], nan=np.inf))

        for method in methods:
            progress.update(bar, description=f"{method}, compiling")
            if method == SINGLE_TASK:
                trainer = SingleTaskTrainer(test)
            else:
                trainer = trainers[method] = Trainer(method, test)
            rho = tune(trainer, method) if _has_radius(method) else 0.0
            done = runs.setdefault(method, {})
            for seed in range(args.seeds):
                if seed not in done:
                    done[seed] = train(trainer, test, rho, seed, method)
                    save(folder, config, runs)
        progress.update(bar, description="timing")
        seconds = [
            [trainer.seconds() for trainer in trainers.values()]
            for _ in range(_TIMED_ROUNDS)
        ]
    medians = 1e3 * np.median(seconds, axis=0)
    costs = {
        method: trainer.cost(float(milliseconds))
        for (method, trainer), milliseconds in zip(
            trainers.items(), medians, strict=True
        )
    }
    measured = {method: cost._asdict() for method, cost in costs.items()}
    save(folder, config | {"costs": measured}, runs)
    return title, runs, costs


class _Measured(NamedTuple):
    """Content of `results.json` beside runs.

    Attributes:
        validation_error: validation error by method, radius and tuning seed.
        costs: costs by method; they are measured when all runs have finished.
    """

    validation_error: dict[str, dict[str, list[float]]]
    costs: Mapping[str, Cost] = MappingProxyType({})


def _fault(run: Run, tasks: Collection[str]) -> str | None:
    """The fault in a run that a file says to have finished."""
    if run.error.keys() != set(tasks):
        return "its errors are not those of the problem's tasks"
    if any(len(look) != len(Look._fields) for look in run.looks):
        return f"its looks do not have {len(Look._fields)} numbers each"
    return None


def _is_complete(
    costs: Mapping[str, Cost], runs: Results, methods: list[str], seeds: int
) -> bool:
    """Whether nothing is left to do."""
    finished = all(len(runs.get(method, ())) == seeds for method in methods)
    return finished and costs.keys() == set(methods) - {SINGLE_TASK}


def _has_radius(method: str) -> bool:
    return method not in (SINGLE_TASK, PLAIN)


def _caption(args: argparse.Namespace) -> str:
    return (
        "Mean error over tasks on test examples, mean ± standard deviation over seeds "
        f"({args.seeds}). rho: of {', '.join(f'{rho:g}' for rho in RHOS)}, the best on "
        f"validation examples (seeds of their own, {args.tuning_seeds}); alpha 0.5. "
        "Δm: against single-task, without tasks whose error is 0 there or not finite. "
        "to global: error minus global SAM's, seed by seed. "
        "cos: mean cosine with the task's gradient through training, of the local "
        "part, of the whole perturbation and of g0. passes: a backward pass counts as "
        "two forward ones. time: of a step, relative to plain. MB: its peak temporary "
        "memory."
    )
