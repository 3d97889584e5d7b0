"""The files of a run folder that training writes, and reading them back.

`config.json` has the settings, `results.json` every finished training run, and
`metrics.jsonl` a line an evaluation, as it happens; `checkpoints` has the state of the
runs that have not finished.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samo_jax.experiments.benchmarks.checkpoints import Checkpoints
from samo_jax.experiments.benchmarks.devices import is_chief
from samo_jax.experiments.benchmarks.scores import Column, Results, fault
from samo_jax.experiments.benchmarks.tensorboard import Events, Write
from samo_jax.experiments.benchmarks.training import Evaluation, Run
from samo_jax.experiments.configuration import goes_on
from samo_jax.experiments.folders import inside
from samo_jax.experiments.schema import conform, parse
from samo_jax.experiments.tables import load, replace, save

LINES = "metrics.jsonl"


class Line(Evaluation):
    """One of `metrics.jsonl`.

    Attributes:
        method: method that was trained with.
        seed: seed of the run.
    """

    method: str
    seed: int


class Records:
    """The result files of one run folder.

    Attributes:
        folder: folder of the files.
        config: the settings.
        results: results of the finished runs, also before an interrupt.
        checkpoints: checkpoints of the runs that have not finished.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        columns: list[Column],
        events: Events,
        checkpoint_every: float = 60.0,
    ):
        """Begin in an empty folder, or go on in one whose settings are the same.

        Of several processes the first writes; to go on, all read.

        Args:
            folder: folder of the files.
            config: the settings.
            columns: the metrics of all tasks.
            events: event files for TensorBoard.
            checkpoint_every: seconds between two checkpoints.
        """
        self.config = config
        self.checkpoints = Checkpoints(folder, checkpoint_every)
        self.folder, self._columns, self._events = folder, columns, events
        self.results: Results = {}
        if not goes_on(folder, config, writes=is_chief()):
            return
        _, self.results = load(
            folder,
            Run,
            config["methods"],
            config["seeds"],
            lambda _, run: fault(columns, run, config["epochs"]),
        )
        if is_chief():
            for method, runs in self.results.items():
                for seed in runs:
                    self.checkpoints.drop(method, seed)
            self._drop_unfinished_lines()

    @contextmanager
    def training(self, method: str, seed: int) -> Iterator[Write]:
        """A context whose value takes a run's evaluations as they happen."""
        if not is_chief():
            yield lambda _: None
            return
        folder = inside(self.folder, "tensorboard", method, f"seed{seed}")
        with self._events(folder) as add:

            def write(evaluation):
                line = json.dumps({"method": method, "seed": seed, **evaluation})
                with (self.folder / LINES).open("a") as file:
                    file.write(line + "\n")
                add(evaluation)

            yield write

    def finished(self, method: str, seed: int, run: Run) -> None:
        """Keep a run, in `results.json` too."""
        self.results.setdefault(method, {})[seed] = run
        if is_chief():
            config = {**self.config, "columns": self._columns}
            save(self.folder, config, self.results)
            self.checkpoints.drop(method, seed)

    def _drop_unfinished_lines(self) -> None:
        """A run that goes on writes its lines again, those of its checkpoint too."""
        path = self.folder / LINES
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            # An interrupt may have torn the last line, which is of an unfinished run.
            if lines and not lines[-1].endswith(b"\n"):
                del lines[-1]
            kept = [line for n, line in enumerate(lines, 1) if self._done(line, n)]
            replace(path, b"".join(kept).decode())

    def _done(self, line: bytes, number: int) -> bool:
        try:
            record = conform(parse(line), Line, "it")
        except ValueError as error:
            raise SystemExit(
                f"--resume: {self.folder / LINES}, line {number}, cannot be read: "
                f"{error}. Without that line, or the file, training goes on"
            ) from None
        return record["seed"] in self.results.get(record["method"], {})
