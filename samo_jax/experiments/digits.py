"""The digits experiment: sharpness-aware multi-task training on real handwriting."""

import argparse
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from textwrap import fill, indent

import jax
import numpy as np
from rich.console import Console

from samo_jax.experiments import report
from samo_jax.experiments.command import (
    epochs_progress,
    positive_int,
    radius,
    results_folder,
    share,
)
from samo_jax.experiments.data import TASKS, multi_digits
from samo_jax.experiments.methods import (
    ALL,
    COMBINERS,
    DEFAULT_METHODS,
    SINGLE_TASK,
    extra_args,
    make_optimizer,
    select,
)
from samo_jax.experiments.tables import save, terminal_table
from samo_jax.experiments.training import Run, Trainer

DESCRIPTION = """\
Recognise two overlaid handwritten digits (tasks "left" and "right") with one small
network. Compares single-task training with mean, MGDA and FairGrad, each plain, with
global SAM and with SAMO, on the same data and initialisations; or any other methods."""

EPILOG = f"""\
A METHOD is {SINGLE_TASK}, COMBINER, COMBINER+global or COMBINER+samo. COMBINER is one
of these, or {ALL} for every one:

{indent(fill(", ".join(COMBINERS), 78, break_on_hyphens=False), "  ")}

for example: --methods {SINGLE_TASK} mean {ALL}+samo"""

_BATCH_SIZE = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
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
    parser.add_argument(
        "--epochs", type=positive_int, default=30, help="epochs per run (default: 30)"
    )
    parser.add_argument(
        "--rho",
        type=radius,
        default=0.2,
        help="perturbation radius (default: 0.2)",
    )
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
        help="evaluate on test pairs, or tune on validation pairs (default: test)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for results (default: runs/digits-DATE-TIME)",
    )


def _methods(text: str) -> tuple[str, ...]:
    try:
        return select(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r}") from None


def selected_methods(selections: Iterable[tuple[str, ...]]) -> list[str]:
    """The methods of all selections, each once, in order."""
    return list(dict.fromkeys(chain.from_iterable(selections)))


def run(args: argparse.Namespace) -> int:
    """Train every method with every seed; return the exit status."""
    console = Console()
    folder = results_folder(args.out, "digits")

    methods = selected_methods(args.methods)
    config = {**vars(args), "methods": methods, "out": str(folder)}
    results: report.Results = {}
    interrupted = False
    with epochs_progress(console, max(map(len, methods)) + 8) as progress:
        total = len(methods) * args.seeds * args.epochs
        bar = progress.add_task("compiling", total=total)
        trainers = _make_trainers(methods, args)
        try:
            for seed in range(args.seeds):
                for method in methods:
                    progress.update(bar, description=f"{method}, seed {seed}")
                    part = 1 / len(trainers[method])
                    finished = _train(
                        trainers[method],
                        seed,
                        args.epochs,
                        lambda part=part: progress.advance(bar, part),
                    )
                    results.setdefault(method, {})[seed] = finished
                    save(folder, config, results)
        except KeyboardInterrupt:
            interrupted = True
    if not results:
        console.print("Interrupted before the first run had finished.")
        return 130
    caption = _caption(args, results)
    report.write_report(folder, results, caption)
    console.print(terminal_table(report.summarize(results), caption))
    if interrupted:
        console.print("Interrupted: these are the runs that had finished.")
    console.print(f"Saved table.md, accuracy.png and results.json in {folder}")
    return 130 if interrupted else 0


def _make_trainers(methods, args) -> dict[str, list[Trainer]]:
    """Per method, the trainers of its networks (single-task: one a task)."""
    data = multi_digits(args.split)

    def trainer(method, tasks):
        def make_tx(seed):
            return make_optimizer(
                method,
                tasks,
                rho=args.rho,
                alpha=args.alpha,
                seed=seed,
                steps_per_epoch=len(data[0].images) // _BATCH_SIZE,
            )

        return Trainer(tasks, make_tx, extra_args(method), data, _BATCH_SIZE)

    return {
        method: [
            trainer(method, tasks)
            for tasks in ([(t,) for t in TASKS] if method == SINGLE_TASK else [TASKS])
        ]
        for method in methods
    }


def _train(trainers: list[Trainer], seed: int, epochs: int, on_epoch) -> Run:
    """One run; several networks count as one, their step times added."""
    runs = [trainer.run(seed, epochs, on_epoch) for trainer in trainers]
    return Run(
        accuracy={task: acc for run in runs for task, acc in run.accuracy.items()},
        accuracy_curve=_average([run.accuracy_curve for run in runs]),
        loss_curve=_average([run.loss_curve for run in runs]),
        seconds_per_step=sum(run.seconds_per_step for run in runs),
    )


def _average(curves: list) -> list:
    return np.mean(curves, axis=0).tolist()


def _caption(args: argparse.Namespace, results: report.Results) -> str:
    seeds = max(len(runs) for runs in results.values())
    return (
        f"Accuracy on {args.split} pairs, mean ± standard deviation over {seeds} "
        f"seed{'s' if seeds > 1 else ''}, {args.epochs} epochs, rho {args.rho:g}, "
        f"alpha {args.alpha:g}. Δm: against single-task, higher accuracy is negative. "
        f"time: per step, relative to plain mean, {jax.default_backend()}."
    )
