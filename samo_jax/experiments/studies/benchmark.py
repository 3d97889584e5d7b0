"""Benchmarks on the command line: any methods, with table, pictures and results."""

import argparse
import inspect
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from samo_jax.experiments.command import (
    add_count_argument,
    add_methods_argument,
    add_out_argument,
    epochs_progress,
    make_console,
    patience,
    positive_int,
    radius,
    seconds,
    share,
)
from samo_jax.experiments.problems import registry
from samo_jax.experiments.problems.benchmark import Benchmark
from samo_jax.experiments.reports.benchmark_page import summarize, write_report
from samo_jax.experiments.reports.scores import delta_m_caption
from samo_jax.experiments.reports.tables import counted, terminal_table
from samo_jax.experiments.reports.tensorboard import event_files
from samo_jax.experiments.studies.data_arguments import (
    add_data_arguments,
    benchmark_of,
)
from samo_jax.experiments.training.agreement import make_diagnose
from samo_jax.experiments.training.built import built_methods
from samo_jax.experiments.training.columns import columns
from samo_jax.experiments.training.configuration import (
    add_file_arguments,
    epochs_before,
    settings,
)
from samo_jax.experiments.training.devices import (
    ONE,
    Devices,
    everywhere,
    is_chief,
    join,
    shard,
    together,
)
from samo_jax.experiments.training.folders import (
    check_folder,
    opened,
    results_folder,
)
from samo_jax.experiments.training.methods import SINGLE_TASK, method_of
from samo_jax.experiments.training.records import Records, no_events
from samo_jax.experiments.training.runs import Results, merged
from samo_jax.experiments.training.train_step import task_losses
from samo_jax.experiments.training.trainer import Trainer, trainers_of

DEFAULT_METHODS = (
    SINGLE_TASK,
    *(
        combiner + perturbation
        for combiner in ("mean", "mgda", "fairgrad")
        for perturbation in ("", "+global_sam", "+samo")
    ),
)
DESCRIPTION = """\
Compares single-task training with mean, MGDA and FairGrad, each plain, with global SAM
and with SAMO, on the same data and initialisations; or any other methods."""


class BenchmarkCommand(NamedTuple):
    """Command of one benchmark.

    Attributes:
        name: name of the benchmark.
    """

    name: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command line."""
        about = inspect.getdoc(registry.BENCHMARKS[self.name])
        parser.description = f"{about}\n\n{DESCRIPTION}"
        recipe = Benchmark._field_defaults | registry.RECIPES[self.name]
        parser.add_argument(
            "--benchmark",
            choices=[self.name],
            default=self.name,
            help=argparse.SUPPRESS,
        )
        methods = registry.METHODS.get(self.name, DEFAULT_METHODS)
        add_methods_argument(parser, methods)
        add_count_argument(parser, "--seeds", 3, "number of seeds")
        parser.add_argument(
            "--epochs",
            type=positive_int,
            help=f"per run (default: {recipe['epochs']}); with --resume also more than "
            "before, which gives what so many from the start would have given",
        )
        parser.add_argument(
            "--rho",
            type=radius,
            help="perturbation radius, where a method does not set it "
            f"(default: {recipe['rho']:g})",
        )
        parser.add_argument(
            "--alpha",
            type=share,
            help="share of the global gradient in the perturbations of SAMO and its "
            f"memory, where a method does not set it (default: {recipe['alpha']:g})",
        )
        parser.add_argument(
            "--split",
            choices=["test", "validation"],
            default="test",
            help="evaluate on test or, to tune, on validation examples (default: test)",
        )
        parser.add_argument(
            "--tensorboard",
            action=argparse.BooleanOptionalAction,
            default=False,
            help="write events for TensorBoard, too, which needs the tensorboard extra "
            "(default: no)",
        )
        parser.add_argument(
            "--checkpoint-every",
            type=seconds,
            default=60.0,
            metavar="SECONDS",
            help="save the state of training after an epoch, if that long ago (0: "
            "after every one), for --resume (default: 60)",
        )
        parser.add_argument(
            "--keep-checkpoints",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="keep the last state of finished runs, to --resume with more --epochs "
            "(default: yes)",
        )
        parser.add_argument(
            "--distributed",
            action="store_true",
            help="train on all devices of several processes, see README (default: no)",
        )
        parser.add_argument(
            "--join-timeout",
            type=patience,
            default=300.0,
            metavar="SECONDS",
            help="how long processes wait for each other at the start (default: 300)",
        )
        add_file_arguments(parser)
        add_out_argument(parser, self.name)
        if self.name in registry.OF_DATA:
            add_data_arguments(parser, self.name, recipe["batch_size"])

    def run(self, args: argparse.Namespace) -> int:
        """Train every method with every seed; return the exit status."""
        check_folder(args)
        if args.distributed:
            join(args.join_timeout)
        console = make_console(160, quiet=not is_chief())
        devices = everywhere() if args.distributed else ONE
        with ExitStack() as stack:
            benchmark, records = together(
                lambda: _prepared(self.name, args, devices, stack.enter_context)
            )
            folder = records.folder
            go_on = f"python -m samo_jax.experiments {self.name} --resume {folder}"
            try:
                try:
                    _train_all(benchmark, devices, records, console)
                    interrupted = False
                except KeyboardInterrupt:
                    interrupted = True
                if records.results and is_chief():
                    _report(self.name, benchmark, records, console)
            except OSError as error:
                raise SystemExit(
                    f"Stopped: {error}. What was saved stays: {go_on}"
                ) from None
        if interrupted:
            console.print(
                "Interrupted: what there is are the runs that had finished. "
                f"To go on: {go_on}",
                soft_wrap=True,
            )
        return 130 if interrupted else 0


def commands() -> list[tuple[str, BenchmarkCommand, str]]:
    """Name, command and summary of each benchmark."""
    return [
        (name, BenchmarkCommand(name), _summary(name)) for name in registry.BENCHMARKS
    ]


def _summary(name: str) -> str:
    return str(registry.BENCHMARKS[name].__doc__).partition("\n")[0]


def _prepared(
    name: str,
    args: argparse.Namespace,
    devices: Devices,
    enter: Callable[[AbstractContextManager[None]], None],
) -> tuple[Benchmark, Records]:
    """The benchmark, and the records of its folder, which this process has entered."""
    events = event_files() if args.tensorboard else no_events
    benchmark = benchmark_of(name, args)
    config = settings(args)
    unset = [field for field in benchmark._fields if config.get(field, 0) is None]
    config |= {field: getattr(benchmark, field) for field in unset}
    benchmark = benchmark._replace(
        **{field: config[field] for field in ("epochs", "rho", "alpha")}
    )
    built = built_methods(args.methods, benchmark, name)
    if devices is not ONE:
        benchmark = shard(benchmark, devices)
    folder = args.resume
    if benchmark.has_fixed_length and folder and epochs_before(folder, config):
        raise SystemExit(
            f"--epochs: the learning rate of {name} falls over all epochs, so that a "
            "run cannot be lengthened: begin anew in another folder"
        )
    if is_chief():  # which writes
        folder = folder or results_folder(args.out, name)
        enter(opened(folder))
    records = Records(
        folder or Path(os.devnull),
        config,
        columns(benchmark.tasks),
        built,
        events,
        args.checkpoint_every,
        args.keep_checkpoints,
    )
    return benchmark, records


def _report(
    name: str, benchmark: Benchmark, records: Records, console: Console
) -> None:
    """Print the table, and write the report."""
    results, folder = records.results, records.folder
    caption = _caption(records.config, results, benchmark)
    write_report(records, benchmark.tasks, caption, _summary(name))
    console.print(terminal_table(summarize(results, benchmark.tasks), caption))
    console.print(f"Saved report.html, report.md and results.json in {folder}")


def _train_all(
    benchmark: Benchmark, devices: Devices, records: Records, console: Console
) -> None:
    """Train with every method and seed, but for the runs that have finished."""
    methods, seeds = records.config["methods"], range(records.config["seeds"])
    left = [
        (method, seed)
        for seed in seeds
        for method in methods
        if seed not in records.results.get(method, {})
    ]
    trainers = _trainers(benchmark, devices, methods)
    with epochs_progress(console, max(map(len, methods)) + 8) as progress:
        total = len(methods) * len(seeds) * benchmark.epochs
        done = total - len(left) * benchmark.epochs
        bar = progress.add_task("compiling", total=total, completed=done)
        for method, seed in left:
            progress.update(bar, description=f"{method}, seed {seed}")
            networks = trainers[method]
            part = 1 / len(networks)
            checkpoints = records.checkpoints.of(method, seed, len(networks))
            with records.training(method, seed) as on_evaluation:
                runs = [
                    trainer.train(
                        seed,
                        benchmark.epochs,
                        lambda part=part: progress.advance(bar, part),
                        on_evaluation,
                        checkpoint,
                    )[1]
                    for trainer, checkpoint in zip(networks, checkpoints, strict=True)
                ]
            records.finished(method, seed, merged(runs))


def _trainers(
    benchmark: Benchmark, devices: Devices, methods: list[str]
) -> dict[str, list[Trainer]]:
    """The trainers of each method's networks."""
    diagnose = make_diagnose(
        partial(task_losses, benchmark, benchmark.net(tuple(benchmark.tasks))),
        next(benchmark.train.batches(benchmark.batch_size, np.random.default_rng(0))),
        tuple(benchmark.tasks),
        benchmark.frozen,
    )
    return {
        text: trainers_of(
            method_of(text), benchmark, diagnose=diagnose, devices=devices
        )
        for text in methods
    }


def _caption(config: dict[str, Any], results: Results, benchmark: Benchmark) -> str:
    seeds = max(len(runs) for runs in results.values())
    over = "mean ± standard deviation over " if seeds > 1 else ""
    first = ", and compiles in its only epoch" if config["epochs"] == 1 else ""
    return (
        f"On {config['split']} examples, {over}{counted(seeds, 'seed')}, "
        f"{counted(config['epochs'], 'epoch')}, "
        f"rho {config['rho']:g}, alpha {config['alpha']:g} where a method does not set "
        f"them. {delta_m_caption(columns(benchmark.tasks), results)} "
        f"time: per step{first}, relative to plain mean, {jax.default_backend()}. "
        + " ".join(benchmark.notes)
    )
