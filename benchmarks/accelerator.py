"""Everything measured on an accelerator, in one run of a few minutes.

    PYTHONPATH=. python3 benchmarks/accelerator.py --output FOLDER

JAX and PyTorch each run in a process of their own, in turns. Every measurement is a
line of FOLDER/measurements.jsonl as soon as it is done, and the page is made from these
lines after every part: a run that is cut short keeps what it has measured.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import random
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from accelerator_page import page

ROOT = Path(__file__).parents[1]
PAGE = "accelerator.md"
MINUTES = 8.0
# (file, dtype, precision of products)
GOLDENS = (
    ("samo_step_k11", "float32", "highest"),
    ("samo_step_k11", "float64", None),
    ("samo_step_k11", "float32", None),
    ("samo_step_k3", "float32", "highest"),
    ("samo_step_k2", "float32", "highest"),
)
# As tests/test_torchjd.py names them.
DIRECTIONS = (
    "fairgrad-2",
    "mgda-tight",
    "cagrad-0.5",
    "upgrad-tight",
    "nash_mtl",
    "dualproj-tight",
    "imtl_g",
    "conflict_free_inverse",
    "aligned_mtl-min",
    "krum",
)
TASKS = (40, 3)
SOLVERS = ("fairgrad", "mgda", "cagrad", "upgrad", "nash")
# What a round does, and whether its loop is open: ends when the data say so.
CONTROL_FLOW = (
    ("cosine", False),
    ("cosine", True),
    ("Cholesky solve", False),
    ("Cholesky solve", True),
    ("lax.cond", False),
    ("lax.switch", False),
    ("jax.pure_callback", False),
)
METHODS = ("plain", "FairGrad", "global SAM", "SAMO", "F-MTL")
# JAX's `unroll` of a model's steps, and more (method, unroll)s. K passes in a row hold
# the activations of them all, and a large model has no memory for that.
UNROLL = {"cnn40": None, "transformer8": False, "dense3": None}
CHEAP = (
    "FairGrad, representation",
    "FairGrad, kept",
    "FairGrad, both",
    "global SAM, both",
    "F-MTL, common, both",
)
MORE = {
    "cnn40": [("FairGrad", 10), ("SAMO", 10), *((name, None) for name in CHEAP)],
    "transformer8": [("FairGrad", None), *((name, False) for name in CHEAP)],
    "dense3": [],
}
ROUNDS = 3
GRACE = 10.0  # seconds, for those that keep to their time themselves
COMPILATION = 0.55  # at most, of the time of a model
WARM_UP = 0.4  # of PyTorch, of what is left then
ENVIRONMENTS = {
    # Two frameworks share the card's memory.
    "jax": {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.6",
    },
    "torch": {"JAX_PLATFORMS": "cpu"},
}
REHEARSAL = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "OMP_NUM_THREADS": "1"}


def serve(connection: Any, module: str, environment: dict[str, str]) -> None:
    """In a process of its own: answer (function, arguments) by what it returns."""
    os.environ.update(environment)
    with contextlib.suppress(ImportError):  # it is raised again below
        importlib.import_module(module)
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

    def __init__(self, module: str, environment: dict[str, str] | None = None):
        """Start the process."""
        self.args = (module, environment or {})
        self.start()

    def start(self) -> None:
        """A fresh process, which imports its module at once."""
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        args = (other, *self.args)
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

    def __init__(
        self,
        folder: Path,
        minutes: float,
        small: bool,
        workers: dict[str, Worker],
        page: Path | None = None,
    ):
        """The time runs from now on."""
        self.end = time.monotonic() + 60 * minutes
        self.limit = self.end
        self.workers, self.small = workers, small
        folder.mkdir(parents=True, exist_ok=True)
        self.pages = [folder / PAGE, *([page] if page else [])]
        self.file = (folder / "measurements.jsonl").open("w")
        self.rows: list[dict[str, Any]] = []

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
        reply = self.workers[framework].ask(
            function, arguments, max(self.left, 0) + GRACE
        )
        took = round(time.monotonic() - start, 2)
        return "error" not in self.write({**row, **reply, "took_s": took})

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """A shorter limit for a while."""
        before, self.limit = self.limit, time.monotonic() + seconds
        yield
        self.limit = before

    @contextlib.contextmanager
    def part(self, title: str, share: float) -> Iterator[None]:
        """A part that may take a share of the time left; then the page so far."""
        start = time.monotonic()
        with self.within(share * (self.end - start)):
            yield
        took = round(time.monotonic() - start, 1)
        self.write({"part": "part", "title": title, "took_s": took})
        try:
            publish(self.rows, self.pages)
        except Exception:  # the measurements are worth more than the page
            traceback.print_exc()

    def finish(self) -> None:
        """The last page; no process stays."""
        for worker in self.workers.values():
            worker.stop()
        publish(self.rows, self.pages)
        self.file.close()


def publish(rows: list[dict[str, Any]], pages: list[Path]) -> None:
    """Write the page of these rows."""
    for path in pages:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(rows))


def goldens(run: Run) -> None:
    """Recorded steps again."""
    for file, dtype, precision in GOLDENS[:: 4 if run.small else 1]:
        arguments = {"file": file, "dtype": dtype, "precision": precision}
        run.measure("golden", "jax", "golden", 5, **arguments)


def directions(run: Run) -> None:
    """Recorded directions again."""
    for name in DIRECTIONS[:: 3 if run.small else 1]:
        run.measure("directions", "jax", "directions", 3, name=name, dtype="float32")


def solvers(run: Run) -> None:
    """Of small and large Gramians."""
    for num_tasks in TASKS[-1:] if run.small else TASKS:
        for name in SOLVERS:
            arguments = {"name": name, "num_tasks": num_tasks, "seconds": 0.2}
            problems = 5 if run.small else 50
            run.measure("solver", "jax", "solver", 5, problems=problems, **arguments)


def control_flow(run: Run) -> None:
    """What XLA makes of loops, branches and callbacks."""
    for kind, is_open in CONTROL_FLOW:
        arguments = {"kind": kind, "is_open": is_open, "seconds": 0.1}
        run.measure("control flow", "jax", "control_flow", 3, **arguments)


def steps(run: Run, model: str) -> None:
    """All methods in both frameworks, in turns, and profiles of JAX's."""
    ready = [*compiled(run, model), *warmed_up(run, model)]
    order = random.Random(0)
    seconds = 0.05 if run.small else 0.3
    for turn in range(2 if run.small else ROUNDS):
        for step in order.sample(ready, len(ready)):
            framework, arguments = step
            if not run.measure(
                "timed", framework, "times", 2, **arguments, seconds=seconds
            ):
                ready.remove(step)
        for framework, arguments in ready:
            if turn == 0 and framework == "jax":
                run.measure("profiled", framework, "profile", 3, **arguments)


Step = tuple[str, dict[str, Any]]  # framework, and arguments of its functions


def compiled(run: Run, model: str) -> Iterator[Step]:
    """JAX's steps, compiled all at once."""
    wanted = [(method, UNROLL[model]) for method in METHODS] + MORE[model]
    common = {"model": model, "small": run.small}
    with run.within(COMPILATION * run.left):
        if not run.measure("submitted", "jax", "submit", 5, **common, steps=wanted):
            return
        for method, unroll in wanted:
            arguments = {**common, "method": method, "unroll": unroll}
            # What is compiled by then is taken in any case.
            seconds = max(run.left, 0)
            if run.measure(
                "prepared", "jax", "prepare", -60, **arguments, seconds=seconds
            ):
                yield "jax", arguments


def warmed_up(run: Run, model: str) -> Iterator[Step]:
    """PyTorch's steps."""
    with run.within(WARM_UP * run.left):
        for method in METHODS:
            arguments = {"model": model, "small": run.small, "method": method}
            if run.measure("prepared", "torch", "prepare", 3, **arguments):
                yield "torch", arguments


# Each with its largest share of the time that is left.
PARTS: dict[str, tuple[Callable[[Run], None], float]] = {
    "recorded steps": (goldens, 0.12),
    "solvers": (solvers, 0.22),
    "control flow": (control_flow, 0.08),
    "cnn40": (partial(steps, model="cnn40"), 0.45),
    "transformer8": (partial(steps, model="transformer8"), 0.6),
    "dense3": (partial(steps, model="dense3"), 1.0),
    "recorded directions": (directions, 1.0),
}


def measure(run: Run, parts: list[str]) -> None:
    """The most important first."""
    with run.part("environment", 1.0):
        for framework in run.workers:
            run.measure("environment", framework, "environment", 0)
    for name in parts:
        function, share = PARTS[name]
        with run.part(name, share):
            function(run)


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
        "--rows",
        type=Path,
        nargs="+",
        help="make the page of these lines, measure nothing",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args(args)
    if arguments.rows:
        lines = [line for file in arguments.rows for line in file.open()]
        pages = [arguments.page or arguments.output / PAGE]
        publish([json.loads(line) for line in lines], pages)
        return
    workers = {
        name: Worker(
            f"accelerator_{name}", own | (REHEARSAL if arguments.small else {})
        )
        for name, own in ENVIRONMENTS.items()
    }
    run = Run(
        arguments.output,
        arguments.minutes,
        arguments.small,
        workers,
        arguments.page,
    )
    flags = os.environ.get("XLA_FLAGS")
    flags = f"XLA_FLAGS={shlex.quote(flags)} " if flags else ""
    words = ["python3", "benchmarks/accelerator.py", *sys.argv[1:]]
    command = f"{flags}PYTHONPATH=. {shlex.join(words)}"
    run.write({"part": "command", "command": command, "small": arguments.small})
    try:
        measure(run, arguments.parts)
    finally:
        run.finish()


if __name__ == "__main__":
    main()
