"""The command of the study of real data."""

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track

from samo_jax.experiments.command import (
    add_count_argument,
    add_methods_argument,
    add_out_argument,
    make_console,
    positive_int,
)
from samo_jax.experiments.reports.tables import terminal_table
from samo_jax.experiments.studies.real.cells import DATA_SETS, DEFAULT
from samo_jax.experiments.studies.real.report import table, write_report
from samo_jax.experiments.studies.real.runs import train
from samo_jax.experiments.studies.real.study import Group, Study
from samo_jax.experiments.training.configuration import add_file_arguments, resumable
from samo_jax.experiments.training.folders import path

DESCRIPTION = """\
Train on real data sets with combiners and sharpness methods, plain mean and all: the
learning rate tuned for plain mean, a radius for each sharpness method."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "--data",
        type=path,
        metavar="FOLDER",
        help="folder with tox21.csv.gz, sider.csv.gz, toxcast_data.csv.gz, school.mat "
        "and GoEmotions' files, of those that are run",
    )
    parser.add_argument(
        "--data-sets",
        nargs="+",
        choices=DATA_SETS,
        default=list(DEFAULT),
        metavar="NAME",
        help=f"of {', '.join(DATA_SETS)} (default: {' '.join(DEFAULT)})",
    )
    add_methods_argument(parser, [])
    add_count_argument(parser, "--seeds", 5, "number of seeds")
    add_count_argument(parser, "--tuning-seeds", 2, "others, by which is tuned")
    add_count_argument(parser, "--processes", 2, "processes, of one core each", 64)
    parser.add_argument(
        "--epochs", type=positive_int, help="per run (default: each data set's)"
    )
    add_file_arguments(parser)
    add_out_argument(parser, "real")


def run(args: argparse.Namespace) -> int:
    """Train on every data set; return the exit status."""
    console = make_console(120)
    studies = {}
    with resumable(args, "real") as folder:
        for name in args.data_sets:
            study = Study(
                name,
                folder,
                args.data,
                args.seeds,
                args.tuning_seeds,
                args.epochs,
                args.methods,
            )
            (folder / name).mkdir(exist_ok=True)
            _run(study, args.processes, console)
            studies[name] = study
            write_report(folder, studies)
            console.print(terminal_table(table(study), name))
    console.print(f"Saved report.html, report.md and real.png in {folder}")
    return 0


def _run(study: Study, processes: int, console: Console) -> None:
    spawn = multiprocessing.get_context("spawn")
    for number, groups in enumerate(study.stages(), 1):
        title = f"{study.name}, stage {number} of 3"
        work = partial(_train, folder=study.folder, data=study.data)
        with ProcessPoolExecutor(
            processes, spawn, _keep_to_a_core, (spawn.Value("i", 0),)
        ) as pool:
            try:
                done = pool.map(work, groups)
                for _ in track(done, title, len(groups), console=console):
                    pass
            except BrokenProcessPool:
                raise SystemExit(
                    "A process of the study has ended, perhaps for lack of memory: "
                    f"take fewer --processes, with --resume {study.folder}"
                ) from None
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
                raise


def _train(group: Group, folder: Path, data: Path | None) -> None:
    train(group.settings, group.seeds, folder, data)


def _keep_to_a_core(count) -> None:
    """Keep this process to a core of its own, where the system can."""
    with count.get_lock():
        number = count.value
        count.value += 1
    if hasattr(os, "sched_setaffinity"):
        cores: Sequence[int] = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})
