"""Everything measured on an accelerator, in one run of a few minutes.

    PYTHONPATH=. python3 benchmarks/accelerator.py --output FOLDER

JAX and PyTorch each run in a process of their own, in turns. Every measurement is a
line of FOLDER/measurements.jsonl as soon as it is done, and the page is made from these
lines after every part: a run that is cut short keeps what it has measured.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import random
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerator_page import page

ROOT = Path(__file__).parents[1]
MINUTES = 8.0
SOLVERS = ("fairgrad", "mgda", "cagrad", "upgrad", "nash")
CONTROL_FLOW = (
    "counted loop",
    "data-dependent loop",
    "lax.cond",
    "lax.switch",
    "jax.pure_callback",
)
METHODS = ("plain", "FairGrad", "global SAM", "SAMO", "F-MTL")
# Beside the default `unroll`.
CHUNKS: dict[str, tuple[int, ...]] = {"cnn40": (10,), "transformer8": (), "dense3": ()}
ROUNDS = 4
PREPARATION = 0.65  # at most, of the time of a model
ENVIRONMENTS = {
    # Two frameworks share the card's memory.
    "jax": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    "torch": {"JAX_PLATFORMS": "cpu"},
}


def serve(connection: Any, module: str, environment: dict[str, str]) -> None:
    """In a process of its own: answer (function, arguments) by what it returns."""
    os.environ.update(environment)
    while True:
        function, arguments = connection.recv()
        try:
            worker = importlib.import_module(module)
            reply = getattr(worker, function)(**arguments)
        except Exception as error:
            last = traceback.format_exc(limit=-2)
            reply = {"error": f"{type(error).__name__}: {error}"[:500], "trace": last}
        connection.send(reply)


class Worker:
    """A process that runs the functions of one module."""

    def __init__(self, framework: str):
        """Start the process."""
        self.framework = framework
        self.start()

    def start(self) -> None:
        """A fresh process, which imports its module when first asked."""
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        environment = ENVIRONMENTS.get(self.framework, {})
        args = (other, f"accelerator_{self.framework}", environment)
        self.process = context.Process(target=serve, args=args, daemon=True)
        self.process.start()
        other.close()

    def ask(self, function: str, arguments: dict[str, Any], seconds: float) -> Any:
        """What the function returns, or an error; after so many seconds give up."""
        try:
            self.connection.send((function, arguments))
            if self.connection.poll(seconds):
                return self.connection.recv()
            error = f"not done in {seconds:.0f} s"
        except (EOFError, OSError):
            self.process.join(timeout=5)
            error = f"the process ended with {self.process.exitcode}"
        self.stop()
        self.start()
        return {"error": error}

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.join()


class Run:
    """A run within its time: asks the workers, and writes what they answer."""

    def __init__(self, folder: Path, pages: list[Path], minutes: float, small: bool):
        """Start the workers."""
        self.end = time.monotonic() + 60 * minutes
        self.limit = self.end
        self.pages, self.small = pages, small
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / "measurements.jsonl").open("w")
        self.rows: list[dict[str, Any]] = []
        self.workers = {name: Worker(name) for name in ENVIRONMENTS}

    @property
    def left(self) -> float:
        """Seconds of the part."""
        return self.limit - time.monotonic()

    def write(self, row: dict[str, Any]) -> dict[str, Any]:
        """A line, at once."""
        self.rows.append(row)
        print(json.dumps(row), file=self.file, flush=True)
        brief = {name: row[name] for name in row if name not in ("ms", "trace")}
        print(json.dumps(brief)[:300], flush=True)
        return row

    def measure(
        self, part: str, framework: str, function: str, least: float, **arguments: Any
    ) -> bool:
        """Ask one function, if `least` seconds are left; whether it has answered."""
        row = {"part": part, "framework": framework, **arguments}
        if self.left < least:
            self.write({**row, "error": "no time left"})
            return False
        start = time.monotonic()
        reply = self.workers[framework].ask(function, arguments, self.left)
        took = round(time.monotonic() - start, 2)
        return "error" not in self.write({**row, **reply, "took_s": took})

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """A shorter limit for a while."""
        before, self.limit = self.limit, time.monotonic() + seconds
        yield
        self.limit = before

    @contextmanager
    def part(self, title: str, seconds: float) -> Iterator[None]:
        """A part of the run that may take so many seconds; then the page so far."""
        start = time.monotonic()
        with self.within(min(seconds, self.end - start)):
            yield
        took = round(time.monotonic() - start, 1)
        self.write({"part": "part", "title": title, "took_s": took})
        self.publish()

    def publish(self) -> None:
        """Make the page of all rows."""
        for path in self.pages:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page(self.rows))

    def finish(self) -> None:
        """The last page; no process stays."""
        for worker in self.workers.values():
            worker.stop()
        self.publish()
        self.file.close()


def goldens(run: Run) -> None:
    """Recorded steps again."""
    settings = [
        ("samo_step_k3", "float32", "highest"),
        ("samo_step_k11", "float32", "highest"),
        ("samo_step_k11", "float32", None),
        ("samo_step_k3", "float64", None),
        ("samo_step_k2", "float32", "highest"),
        ("samo_step_k11", "float64", None),
    ]
    for file, dtype, precision in settings:
        arguments = {"file": file, "dtype": dtype, "precision": precision}
        run.measure("golden", "jax", "golden", 5, **arguments)


def solvers(run: Run) -> None:
    """Of small and large Gramians."""
    for num_tasks in (40, 3):
        for name in SOLVERS:
            arguments = {"name": name, "num_tasks": num_tasks, "seconds": 0.2}
            problems = 10 if run.small else 100
            run.measure("solver", "jax", "solver", 5, problems=problems, **arguments)


def control_flow(run: Run) -> None:
    """What XLA makes of loops, branches and callbacks."""
    for kind in CONTROL_FLOW:
        run.measure("control flow", "jax", "control_flow", 3, kind=kind, seconds=0.1)


def steps(run: Run, model: str) -> None:
    """All methods in both frameworks, in turns, and profiles of JAX's."""
    with run.within(PREPARATION * run.left):
        ready = list(prepared(run, model))
    order = random.Random(0)
    for turn in range(2 if run.small else ROUNDS):
        for framework, arguments in order.sample(ready, len(ready)):
            seconds = 0.05 if run.small else 0.3
            done = run.measure(
                "timed", framework, "times", 2, **arguments, seconds=seconds
            )
            if not done:
                ready.remove((framework, arguments))
        for framework, arguments in ready:
            if turn == 0 and framework == "jax":
                run.measure("profiled", framework, "profile", 3, **arguments)
    for framework in run.workers:
        run.measure("dropped", framework, "drop", 0, model=model)


def prepared(run: Run, model: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every step of a model that can be timed, as (framework, arguments)."""
    for method in METHODS:
        arguments = {"model": model, "method": method, "small": run.small}
        steps = [("jax", {**arguments, "unroll": None}), ("torch", arguments)]
        if method != "plain":
            steps += [("jax", {**arguments, "unroll": n}) for n in CHUNKS[model]]
        for framework, arguments in steps:
            if run.measure("prepared", framework, "prepare", 5, **arguments):
                yield framework, arguments


def measure(run: Run) -> None:
    """All parts, the most important first."""
    total = run.end - time.monotonic()
    with run.part("environment", total):
        for framework in run.workers:
            run.measure("environment", framework, "environment", 0)
    with run.part("recorded steps", 0.15 * total):
        goldens(run)
    with run.part("solvers", 0.2 * total):
        solvers(run)
    with run.part("control flow", 0.05 * total):
        control_flow(run)
    for count, model in enumerate(CHUNKS):
        share = (run.end - time.monotonic()) / (len(CHUNKS) - count)
        with run.part(model, share):
            steps(run, model)


def main(args: list[str] | None = None) -> None:
    """Measure, or make the page of what has been measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("accelerator"))
    parser.add_argument("--page", type=Path, help="another place for the page")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--small", action="store_true", help="rehearse on a CPU")
    parser.add_argument(
        "--rows", type=Path, help="make the page of these lines, measure nothing"
    )
    arguments = parser.parse_args(args)
    pages = [arguments.output / "accelerator.md"]
    pages += [arguments.page] if arguments.page else []
    if arguments.rows:
        rows = [json.loads(line) for line in arguments.rows.read_text().splitlines()]
        for path in pages:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page(rows))
        return
    run = Run(arguments.output, pages, arguments.minutes, arguments.small)
    command = shlex.join(["python3", "benchmarks/accelerator.py", *sys.argv[1:]])
    run.write({"part": "command", "command": command, "small": arguments.small})
    try:
        measure(run)
    finally:
        run.finish()


if __name__ == "__main__":
    main()
