"""Records: the files of a run folder that training writes, and reading them back.

`config.json` has the settings, `results.json` every finished training run, and
`metrics.jsonl` a line an evaluation, as it happens; `checkpoints` has the last state of
the runs.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

from samo_jax.experiments.training.checkpoints import Checkpoints
from samo_jax.experiments.training.columns import Column, fault
from samo_jax.experiments.training.configuration import epochs_before, goes_on
from samo_jax.experiments.training.devices import is_chief
from samo_jax.experiments.training.folders import CONFIG, inside
from samo_jax.experiments.training.results import (
    RESULTS,
    Built,
    check_built,
    load,
    replace,
    save,
)
from samo_jax.experiments.training.runs import Evaluation, Results, Run
from samo_jax.experiments.training.schema import conform, parse, shown

Write: TypeAlias = Callable[[Evaluation], None]
Events: TypeAlias = Callable[[Path], AbstractContextManager[Write]]  # in a folder

LINES = "metrics.jsonl"


class Line(Evaluation):
    """Line of `metrics.jsonl`: an evaluation of a run.

    Attributes:
        method: method that was trained with.
        seed: seed of the run.
    """

    method: str
    seed: int


def no_events(_: Path) -> AbstractContextManager[Write]:
    """Events where nobody has asked for them."""
    return nullcontext(lambda _: None)


class Records:
    """The result files of one run folder.

    Attributes:
        folder: folder of the files.
        config: the settings.
        built: the call of each method's transformation.
        results: results of the finished runs, also before an interrupt.
        checkpoints: checkpoints of the runs.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        columns: list[Column],
        built: Mapping[str, str],
        events: Events = no_events,
        checkpoint_every: float = 60.0,
        keep_checkpoints: bool = True,
    ):
        """Begin in an empty folder, or go on in one whose settings are the same.

        Of several processes the first writes; to go on, all read.

        Args:
            folder: folder of the files.
            config: the settings.
            columns: the metrics of all tasks.
            built: the call of each method's transformation.
            events: event files for TensorBoard.
            checkpoint_every: seconds between two checkpoints.
            keep_checkpoints: whether those of finished runs stay.
        """
        self.config = config
        self.checkpoints = Checkpoints(folder, checkpoint_every, keep_checkpoints)
        self.folder, self._columns, self._events = folder, columns, events
        self.built = dict(built)
        self.results: Results = {}
        epochs = epochs_before(folder, config)
        if epochs:
            self._lengthen(self._load(epochs))
            return
        if not goes_on(folder, config, writes=is_chief()):
            return
        self.results = self._load(config["epochs"])
        if is_chief():
            for method, runs in self.results.items():
                for seed in runs:
                    self.checkpoints.finished(method, seed)
            self._drop_unfinished_lines()

    def _load(self, epochs: int) -> Results:
        """The finished runs, each of so many epochs."""
        saved, results = load(
            self.folder,
            Run,
            self.config["methods"],
            self.config["seeds"],
            lambda _, run: fault(self._columns, run, epochs),
            Built,
        )
        if saved:
            check_built(self.folder, saved.built, self.built)
        return results

    def _lengthen(self, results: Results) -> None:
        """Make finished runs unfinished ones of more epochs."""
        for method, runs in results.items():
            for seed in runs:
                if not self.checkpoints.exist(method, seed):
                    raise SystemExit(
                        f"--epochs: {shown(method)}, seed {seed}, has no checkpoint "
                        "left to go on from (see --keep-checkpoints): take another "
                        "folder"
                    )
        if is_chief():
            # In this order: an interrupt in between leaves runs that have not finished.
            (self.folder / RESULTS).unlink(missing_ok=True)
            replace(self.folder / CONFIG, json.dumps(self.config, indent=1))
            self._drop_unfinished_lines()

    @contextmanager
    def training(self, method: str, seed: int) -> Iterator[Write]:
        """A function that takes a run's evaluations as they happen."""
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
        """Record a run that has finished, in `results.json` too."""
        self.results.setdefault(method, {})[seed] = run
        if is_chief():
            config = {**self.config, "columns": self._columns, "built": self.built}
            save(self.folder, config, self.results)
            self.checkpoints.finished(method, seed)

    def _drop_unfinished_lines(self) -> None:
        """Drop the lines of runs that go on, which write them again."""
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
