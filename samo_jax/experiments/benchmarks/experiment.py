"""Running a benchmark with any methods: table, picture and results."""

import argparse
import sys
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from textwrap import fill, indent
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console

from samo_jax.experiments.benchmarks import report
from samo_jax.experiments.benchmarks.benchmark import Benchmark
from samo_jax.experiments.benchmarks.generated import BENCHMARKS
from samo_jax.experiments.benchmarks.methods import (
    ALL,
    COMBINERS,
    DEFAULT_METHODS,
    SINGLE_TASK,
    extra_args,
    make_optimizer,
    select,
)
from samo_jax.experiments.benchmarks.training import Run, Trainer
from samo_jax.experiments.command import (
    epochs_progress,
    positive_int,
    radius,
    results_folder,
    share,
)
from samo_jax.experiments.tables import save, terminal_table

DESCRIPTION = """\
Compares single-task training with mean, MGDA and FairGrad, each plain, with global SAM
and with SAMO, on the same data and initialisations; or any other methods."""

EPILOG = f"""\
A METHOD is {SINGLE_TASK}, COMBINER, COMBINER+global or COMBINER+samo. COMBINER is one
of these, or {ALL} for every one:

{indent(fill(", ".join(COMBINERS), 78, break_on_hyphens=False), "  ")}

for example: --methods {SINGLE_TASK} mean {ALL}+samo"""


class Experiment(NamedTuple):
    """One benchmark on the command line.

    Attributes:
        name: of the benchmark.
    """

    name: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command line."""
        parser.description = f"{BENCHMARKS[self.name].__doc__}\n\n{DESCRIPTION}"
        parser.epilog = EPILOG
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.add_argument(
            "--methods",
            nargs="+",
            type=_methods,
            default=[DEFAULT_METHODS],
            metavar="METHOD",
            help="see below (default: the ten named above)",
        )
        parser.add_argument(
            "--seeds", type=positive_int, default=3, help="number of seeds (default: 3)"
        )
        own = "(default: the benchmark's)"
        parser.add_argument("--epochs", type=positive_int, help=f"per run {own}")
        parser.add_argument("--rho", type=radius, help=f"perturbation radius {own}")
        parser.add_argument(
            "--alpha",
            type=share,
            default=0.5,
            help="share of the global gradient in SAMO's perturbation (default: 0.5)",
        )
        parser.add_argument(
            "--split",
            choices=["test", "validation"],
            default="test",
            help="evaluate on test or, to tune, on validation examples (default: test)",
        )
        parser.add_argument(
            "--out",
            type=Path,
            help=f"folder for results (default: runs/{self.name}-DATE-TIME)",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Train every method with every seed; return the exit status."""
        return run(self.name, args)


def experiments() -> list[tuple[str, Experiment, str]]:
    """Name, experiment and summary of each benchmark."""
    return [
        (name, Experiment(name), str(make.__doc__)) for name, make in BENCHMARKS.items()
    ]


def _methods(text: str) -> tuple[str, ...]:
    try:
        return select(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r}") from None


def selected_methods(selections: Iterable[tuple[str, ...]]) -> list[str]:
    """The methods of all selections, each once, in order."""
    return list(dict.fromkeys(chain.from_iterable(selections)))


def run(name: str, args: argparse.Namespace) -> int:
    """Train every method with every seed; return the exit status."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    folder = results_folder(args.out, name)

    benchmark = BENCHMARKS[name](args.split)
    benchmark = benchmark._replace(
        epochs=args.epochs or benchmark.epochs,
        rho=benchmark.rho if args.rho is None else args.rho,
    )
    methods = selected_methods(args.methods)
    config = {**vars(args), "methods": methods, "out": str(folder), "benchmark": name}
    config |= {"epochs": benchmark.epochs, "rho": benchmark.rho}
    results: report.Results = {}
    interrupted = False
    with epochs_progress(console, max(map(len, methods)) + 8) as progress:
        total = len(methods) * args.seeds * benchmark.epochs
        bar = progress.add_task("compiling", total=total)
        trainers = {
            method: _trainers(method, benchmark, args.alpha) for method in methods
        }
        try:
            for seed in range(args.seeds):
                for method in methods:
                    progress.update(bar, description=f"{method}, seed {seed}")
                    part = 1 / len(trainers[method])
                    finished = _train(
                        trainers[method],
                        seed,
                        benchmark.epochs,
                        lambda part=part: progress.advance(bar, part),
                    )
                    results.setdefault(method, {})[seed] = finished
                    save(folder, config, results)
        except KeyboardInterrupt:
            interrupted = True
    if not results:
        console.print("Interrupted before the first run had finished.")
        return 130
    caption = _caption(args, benchmark, results)
    report.write_report(folder, results, benchmark.tasks, caption)
    rows = report.summarize(results, benchmark.tasks)
    console.print(terminal_table(rows, caption))
    if interrupted:
        console.print("Interrupted: these are the runs that had finished.")
    console.print(f"Saved table.md, summary.png and results.json in {folder}")
    return 130 if interrupted else 0


def _trainers(method: str, benchmark: Benchmark, alpha: float) -> list[Trainer]:
    """Those of a method's networks (single-task: one a task)."""

    def trainer(benchmark: Benchmark) -> Trainer:
        make_tx = partial(
            make_optimizer,
            method,
            tuple(benchmark.tasks),
            rho=benchmark.rho,
            alpha=alpha,
            steps_per_epoch=benchmark.steps_per_epoch,
            learning_rate=benchmark.learning_rate,
        )
        return Trainer(benchmark, lambda seed: make_tx(seed=seed), extra_args(method))

    if method == SINGLE_TASK:
        return [trainer(benchmark.only([task])) for task in benchmark.tasks]
    return [trainer(benchmark)]


def _train(
    trainers: list[Trainer], seed: int, epochs: int, on_epoch: Callable[[], None]
) -> Run:
    """One run; several networks count as one, their step times added."""
    runs = [trainer.run(seed, epochs, on_epoch) for trainer in trainers]

    def merged(metrics):
        return {task: of for part in metrics for task, of in part.items()}

    return Run(
        metrics=merged([run.metrics for run in runs]),
        metrics_curve=[
            (parts[0][0], merged([metrics for _, metrics in parts]))
            for parts in zip(*(run.metrics_curve for run in runs), strict=True)
        ],
        loss_curve=np.mean([run.loss_curve for run in runs], axis=0).tolist(),
        seconds_per_step=sum(run.seconds_per_step for run in runs),
    )


def _caption(
    args: argparse.Namespace, benchmark: Benchmark, results: report.Results
) -> str:
    seeds = max(len(runs) for runs in results.values())
    return (
        f"On {args.split} examples, mean ± standard deviation over {seeds} "
        f"seed{'s' if seeds > 1 else ''}, {benchmark.epochs} epochs, "
        f"rho {benchmark.rho:g}, alpha {args.alpha:g}. "
        f"Δm: against {report.baseline(results)}, lower is better. "
        f"time: per step, relative to plain mean, {jax.default_backend()}."
    )
