"""Running a benchmark with any methods: table, picture and results."""

import argparse
import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from textwrap import fill, indent
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from samo_jax.experiments.benchmarks import files
from samo_jax.experiments.benchmarks.benchmark import Benchmark
from samo_jax.experiments.benchmarks.devices import (
    ONE,
    Devices,
    everywhere,
    is_chief,
    join,
    split,
    together,
)
from samo_jax.experiments.benchmarks.generated import BENCHMARKS
from samo_jax.experiments.benchmarks.looks import make_look
from samo_jax.experiments.benchmarks.methods import (
    ALL,
    COMBINERS,
    DEFAULT_METHODS,
    SINGLE_TASK,
    benchmark_optimizer,
    extra_args,
    needs_second_batch,
    select,
)
from samo_jax.experiments.benchmarks.records import Records
from samo_jax.experiments.benchmarks.report import summarize, write_report
from samo_jax.experiments.benchmarks.scores import Results, columns, delta_m_caption
from samo_jax.experiments.benchmarks.tensorboard import event_files, no_events
from samo_jax.experiments.benchmarks.training import Run, Trainer, task_losses
from samo_jax.experiments.command import (
    add_count_argument,
    add_out_argument,
    check_folder,
    epochs_progress,
    factor,
    make_console,
    path,
    patience,
    positive_int,
    radius,
    results_folder,
    seconds,
    share,
)
from samo_jax.experiments.configuration import add_file_arguments, settings
from samo_jax.experiments.folders import opened
from samo_jax.experiments.tables import terminal_table

_ALL_BENCHMARKS = BENCHMARKS | files.BENCHMARKS

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
        name: name of the benchmark.
    """

    name: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command line."""
        about = inspect.getdoc(_ALL_BENCHMARKS[self.name])
        parser.description = f"{about}\n\n{DESCRIPTION}"
        parser.epilog = EPILOG
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.add_argument(
            "--benchmark",
            choices=[self.name],
            default=self.name,
            help=argparse.SUPPRESS,
        )
        parser.add_argument(
            "--methods",
            nargs="+",
            type=_methods,
            default=[DEFAULT_METHODS],
            metavar="METHOD",
            help="see below (default: the ten named above)",
        )
        add_count_argument(parser, "--seeds", 3, "number of seeds")
        own = "(default: the benchmark's)"
        parser.add_argument("--epochs", type=positive_int, help=f"per run {own}")
        parser.add_argument("--rho", type=radius, help=f"perturbation radius {own}")
        parser.add_argument(
            "--alpha",
            type=share,
            help=f"share of the global gradient in SAMO's perturbation {own}",
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
            help="write events for TensorBoard, too (needs the tensorboard extra)",
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
            "--distributed",
            action="store_true",
            help="train on all devices of several processes (see README)",
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
        if self.name in files.BENCHMARKS:
            _add_data_arguments(parser, self.name)

    def run(self, args: argparse.Namespace) -> int:
        """Train every method with every seed; return the exit status."""
        return run(self.name, args)


def experiments() -> list[tuple[str, Experiment, str]]:
    """Name, experiment and summary of each benchmark."""
    return [(name, Experiment(name), _summary(name)) for name in _ALL_BENCHMARKS]


def _summary(name: str) -> str:
    return str(_ALL_BENCHMARKS[name].__doc__).partition("\n")[0]


def _add_data_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        "--data", type=path, metavar="FOLDER", help="of the data set, see above"
    )
    parser.add_argument(
        "--batch-size", type=positive_int, help="(default: the benchmark's)"
    )
    parser.add_argument(
        "--width",
        type=factor,
        default=1.0,
        metavar="FACTOR",
        help="of the network's channels (default: 1, the paper's)",
    )
    if name in files.DENSE:
        parser.add_argument(
            "--network",
            choices=list(files.NETWORKS),
            default="mtan",
            help="SegNet-MTAN (default) or SegNet",
        )


def _benchmark(name: str, args: argparse.Namespace) -> Benchmark:
    if name in BENCHMARKS:
        return BENCHMARKS[name](args.split)
    if args.data is None:
        raise SystemExit("--data: the folder of the data set is required (see --help)")
    network = {"network": args.network} if name in files.DENSE else {}
    try:
        return files.load(
            name, args.data, args.split, args.batch_size, width=args.width, **network
        )
    except ValueError as error:
        raise SystemExit(f"--data: {error}") from None


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
    check_folder(args)
    if args.distributed:
        join(args.join_timeout)
    console = make_console(160, quiet=not is_chief())
    devices = everywhere() if args.distributed else ONE
    with ExitStack() as stack:
        benchmark, records = together(
            lambda: _prepared(name, args, devices, stack.enter_context)
        )
        folder = records.folder
        go_on = f"python -m samo_jax.experiments {name} --resume {folder}"
        try:
            try:
                _train_all(benchmark, devices, records, console)
                interrupted = False
            except KeyboardInterrupt:
                interrupted = True
            if records.results and is_chief():
                _report(name, benchmark, records, folder, console)
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


def _prepared(
    name: str,
    args: argparse.Namespace,
    devices: Devices,
    enter: Callable[[AbstractContextManager[None]], None],
) -> tuple[Benchmark, Records]:
    """The benchmark, and the records of its folder, which this process has entered."""
    events = event_files() if args.tensorboard else no_events
    benchmark = _benchmark(name, args)
    if devices is not ONE:
        benchmark = split(benchmark, devices)
    folder = args.resume
    if is_chief():  # which writes
        folder = folder or results_folder(args.out, name)
        enter(opened(folder))
    config = settings(args) | {"methods": selected_methods(args.methods)}
    own = [field for field in benchmark._fields if config.get(field, 0) is None]
    config |= {field: getattr(benchmark, field) for field in own}
    benchmark = benchmark._replace(
        **{field: config[field] for field in ("epochs", "rho", "alpha")}
    )
    records = Records(
        folder or Path(os.devnull),
        config,
        columns(benchmark.tasks),
        events,
        args.checkpoint_every,
    )
    return benchmark, records


def _report(
    name: str, benchmark: Benchmark, records: Records, folder: Path, console: Console
) -> None:
    """Print the table, and write the report."""
    config, results = records.config, records.results
    caption = _caption(config, results, benchmark)
    write_report(folder, results, benchmark.tasks, caption, config, _summary(name))
    console.print(terminal_table(summarize(results, benchmark.tasks), caption))
    console.print(f"Saved report.html, report.md and results.json in {folder}")


def _train_all(
    benchmark: Benchmark, devices: Devices, records: Records, console: Console
) -> None:
    """Every method with every seed, but those that have finished."""
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
            records.finished(method, seed, _as_one(runs))


def _trainers(
    benchmark: Benchmark, devices: Devices, methods: Sequence[str]
) -> dict[str, list[Trainer]]:
    """The trainers of each method's networks (single-task: one a task)."""
    look = make_look(
        partial(task_losses, benchmark, benchmark.net(tuple(benchmark.tasks))),
        next(benchmark.train.batches(benchmark.batch_size, np.random.default_rng(0))),
        tuple(benchmark.tasks),
    )

    def trainer(method, benchmark, look):
        return Trainer(
            benchmark,
            partial(benchmark_optimizer, benchmark, method),
            extra_args(method),
            needs_second_batch(method),
            look,
            devices,
        )

    return {
        method: [
            trainer(method, benchmark.only([task]), None) for task in benchmark.tasks
        ]
        if method == SINGLE_TASK
        else [trainer(method, benchmark, look)]
        for method in methods
    }


def _as_one(runs: Sequence[Run]) -> Run:
    """One run of several networks: their step times are added."""

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
        looks=[look for run in runs for look in run.looks],
    )


def _caption(config: dict[str, Any], results: Results, benchmark: Benchmark) -> str:
    seeds = max(len(runs) for runs in results.values())
    return (
        f"On {config['split']} examples, mean ± standard deviation over {seeds} "
        f"seed{'s' if seeds > 1 else ''}, {config['epochs']} epochs, "
        f"rho {config['rho']:g}, alpha {config['alpha']:g}. "
        f"{delta_m_caption(columns(benchmark.tasks), results)} "
        f"time: per step, relative to plain mean, {jax.default_backend()}."
    )
