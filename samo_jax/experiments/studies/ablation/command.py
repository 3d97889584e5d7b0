"""The ablation: what SAMO's parameters do, and how sharp its minima are."""

import argparse
from pathlib import Path

from rich.progress import Progress

from samo_jax.experiments.command import (
    add_count_argument,
    add_methods_argument,
    add_out_argument,
    epochs_progress,
    make_console,
    positive_int,
)
from samo_jax.experiments.reports.tables import terminal_table
from samo_jax.experiments.studies.ablation import report
from samo_jax.experiments.studies.ablation.settings import (
    GLOBAL,
    LABELS,
    PLAIN,
    SAMO,
    Setting,
)
from samo_jax.experiments.studies.ablation.study import Splits, Study, splits_of
from samo_jax.experiments.training.built import built_methods
from samo_jax.experiments.training.configuration import (
    add_file_arguments,
    resumable,
    settings,
)
from samo_jax.experiments.training.folders import inside
from samo_jax.experiments.training.methods import SINGLE_TASK, method_of

DESCRIPTION = """\
Compares SAMO with its two halves, global and local SAM, with plain training and with
probes of random sign, or other methods, each with the radius that is best on validation
examples; sweeps SAMO's parameters; looks at how sharp the minima are: Hessian
eigenvalues, slices of the loss, conflicts between the tasks' gradients."""

EPOCHS = {"digits": 20, "scenes": 10}
RADII = (0.1, 0.25, 0.5, 1.0, 2.5)  # times the benchmark's
ALPHAS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
MUS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "--problems",
        nargs="+",
        choices=EPOCHS,
        default=list(EPOCHS),
        metavar="PROBLEM",
        help=f"of {', '.join(EPOCHS)} (default: {' '.join(EPOCHS)})",
    )
    add_methods_argument(parser, list(LABELS))
    for option, default, what in (
        ("--seeds", 5, "seeds of the comparison"),
        ("--sweep-seeds", 5, "seeds of the sweeps"),
        ("--minima", 2, "seeds of the comparison whose minima are looked at"),
    ):
        add_count_argument(parser, option, default, what)
    by_problem = ", ".join(f"{name} {value}" for name, value in EPOCHS.items())
    parser.add_argument(
        "--epochs", type=positive_int, help=f"epochs per run (default: {by_problem})"
    )
    add_file_arguments(parser)
    add_out_argument(parser, "ablation")


def run(args: argparse.Namespace) -> int:
    """Investigate each problem; return the exit status."""
    console = make_console(160)
    methods = list(dict.fromkeys([PLAIN, GLOBAL, *args.methods]))
    if SINGLE_TASK in methods:
        raise SystemExit(f"--methods: {SINGLE_TASK} has no minimum that tasks share")
    problems = {name: splits_of(name) for name in args.problems}
    for name, splits in problems.items():
        built_methods(methods, splits["test"], name)
    sections, pictures = [], []
    with resumable(args, "ablation") as folder:
        for name, splits in problems.items():
            with epochs_progress(console, 26) as progress:
                study = _investigate(
                    name, splits, args, methods, inside(folder, name), progress
                )
            results = study.results
            sections.append(report.section(results, name, study.built))
            pictures += report.plot(results, folder, name)
            report.write_report(folder, sections, args.seeds, args.minima, pictures)
            for rows in (report.comparison(results), report.sharpness(results)):
                console.print(terminal_table(rows, name))
    saved = "report.html, report.md, pictures, and results.json by problem"
    console.print(f"Saved {saved} in {folder}")
    return 0


def _investigate(
    name: str,
    splits: Splits,
    args: argparse.Namespace,
    methods: list[str],
    folder: Path,
    progress: Progress,
) -> Study:
    """The study of a problem: the radius first, with which the others are swept."""
    epochs = args.epochs or EPOCHS[name]
    folder.mkdir(exist_ok=True)
    config = settings(args) | {"problem": name, "epochs": epochs, "methods": methods}
    study = Study(splits, folder, config, progress)
    rhos = [factor * study.test.rho for factor in RADII]
    radii = {m: rhos if method_of(m).has_radius else [0.0] for m in methods}
    by_rho = [Setting(method, rho) for method in radii for rho in radii[method]]
    study.sweep("rho", by_rho, args.sweep_seeds)
    study.results.rhos.update({m: study.results.best_rho(m) for m in methods})
    if SAMO in methods:
        best = Setting(SAMO, study.results.rhos[SAMO])
        alphas = [best._replace(alpha=alpha) for alpha in ALPHAS]
        study.sweep("alpha", alphas, args.sweep_seeds)
        study.sweep("mu", [best._replace(mu=mu) for mu in MUS], args.sweep_seeds)
    study.compare("comparison", args.seeds, args.minima)
    return study
