"""The command of the study of local parts."""

import argparse

from samo_jax.experiments.command import (
    add_count_argument,
    add_methods_argument,
    add_out_argument,
    epochs_progress,
    make_console,
    positive_int,
)
from samo_jax.experiments.problems.small import EPOCHS, PROBLEMS
from samo_jax.experiments.reports.tables import counted, terminal_table
from samo_jax.experiments.studies.local_parts.methods import METHODS, label_of
from samo_jax.experiments.studies.local_parts.report import (
    Outcome,
    summarize,
    write_report,
)
from samo_jax.experiments.studies.local_parts.study import RHOS, Splits, Study
from samo_jax.experiments.training.built import built_methods
from samo_jax.experiments.training.configuration import (
    add_file_arguments,
    resumable,
    settings,
)
from samo_jax.experiments.training.folders import inside
from samo_jax.experiments.training.methods import SINGLE_TASK

DESCRIPTION = """\
Train small networks with 2, 11 and 40 tasks with FairGrad and every local part of
SAMO's perturbation, beside plain training, global SAM, L-SAM, F-MTL and a control whose
local part has a random sign; see where the local parts point and what they cost."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "--problems",
        nargs="+",
        choices=PROBLEMS,
        default=list(PROBLEMS),
        metavar="PROBLEM",
        help=f"of {', '.join(PROBLEMS)} (default: {' '.join(PROBLEMS)})",
    )
    add_methods_argument(parser, METHODS)
    add_count_argument(parser, "--seeds", 5, "number of seeds")
    tuning = "others, by which the radius is chosen"
    add_count_argument(parser, "--tuning-seeds", 3, tuning)
    by_problem = ", ".join(f"{name} {epochs}" for name, epochs in EPOCHS.items())
    parser.add_argument(
        "--epochs", type=positive_int, help=f"epochs per run (default: {by_problem})"
    )
    add_file_arguments(parser)
    add_out_argument(parser, "local_parts")


def run(args: argparse.Namespace) -> int:
    """Train every problem with every method and seed; return the exit status."""
    console = make_console(120)
    methods = list(dict.fromkeys([SINGLE_TASK, *args.methods]))
    if methods == [SINGLE_TASK]:
        raise SystemExit(f"--methods: name a method beside {SINGLE_TASK}")
    problems = {name: Splits.load(name, args.epochs) for name in args.problems}
    for name, problem in problems.items():
        built_methods(methods, problem.test, name)
    outcomes: dict[str, Outcome] = {}
    width = max(map(len, map(label_of, methods))) + 20
    with resumable(args, "local_parts") as folder:
        for name, problem in problems.items():
            title = f"{name}, {len(problem.test.tasks)} tasks"
            of_problem = inside(folder, name)
            of_problem.mkdir(exist_ok=True)
            config = {**settings(args), "problem": name}
            seeds = args.tuning_seeds, args.seeds
            study = Study(problem, methods, *seeds, of_problem, config)
            if not study.is_complete():
                with epochs_progress(console, width) as progress:
                    study.run(progress)
            outcomes[title] = study.outcome()
            write_report(folder, outcomes, _caption(args))
            console.print(terminal_table(summarize(outcomes[title]), title))
    console.print(_caption(args))
    saved = "report.html, report.md, local_parts.png and results.json by problem"
    console.print(f"Saved {saved} in {folder}")
    return 0


def _caption(args: argparse.Namespace) -> str:
    over = "mean ± standard deviation over " if args.seeds > 1 else ""
    return (
        f"Mean error over tasks on test examples, {over}{counted(args.seeds, 'seed')}. "
        f"rho: of {', '.join(f'{rho:g}' for rho in RHOS)}, the best on validation "
        f"examples ({counted(args.tuning_seeds, 'other seed')}); alpha 0.5, where a "
        "method does not set it. "
        "Δm: against single-task, without tasks whose error is 0 there or not finite. "
        "to global: error minus global SAM's, seed by seed. "
        "cos: mean cosine with the task's gradient through training, of the local "
        "part, of the whole perturbation and of g0. passes: a backward pass counts as "
        "two forward ones. time: of a step, relative to plain. memory: peak of a "
        "step's temporary memory."
    )
