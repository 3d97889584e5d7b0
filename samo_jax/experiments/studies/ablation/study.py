"""The runs of one problem: sweeps on validation, the comparison on test examples."""

from collections.abc import Container, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from rich.progress import Progress

from samo_jax.experiments.problems.benchmark import Benchmark
from samo_jax.experiments.problems.generated import Split, digits, scenes
from samo_jax.experiments.studies.ablation.minima import minimum_at
from samo_jax.experiments.studies.ablation.results import Results
from samo_jax.experiments.studies.ablation.settings import Setting
from samo_jax.experiments.training.built import built_methods
from samo_jax.experiments.training.methods import method_of
from samo_jax.experiments.training.results import save
from samo_jax.experiments.training.runs import Run
from samo_jax.experiments.training.trainer import Trainer

PROBLEMS = {"digits": digits, "scenes": partial(scenes, size=(24, 32))}


Splits = Mapping[Split, Benchmark]


def splits_of(name: str) -> Splits:
    """The benchmarks of a problem, which are made once."""
    return {split: PROBLEMS[name](split) for split in ("validation", "test")}


class Study:
    """Study of one problem, each of whose runs is saved as soon as it has finished."""

    def __init__(
        self,
        splits: Splits,
        folder: Path,
        config: dict[str, Any],
        progress: Progress,
    ):
        """Read the results so far.

        Args:
            splits: benchmarks of the problem.
            folder: folder for `results.json`.
            config: settings to be saved with the results: name, epochs and methods.
            progress: progress display, for a bar of each stage.
        """
        self.name, self.epochs = config["problem"], config["epochs"]
        self.folder, self.config, self.progress = folder, config, progress
        self.validation, self.test = splits["validation"], splits["test"]
        self.results = Results.of(
            self.test.tasks, folder, self.epochs, config["methods"]
        )
        self.trainer = cache(self._trainer)
        self.built: dict[str, str] = {}

    def sweep(self, stage: str, settings: Iterable[Setting], seeds: int) -> None:
        """Train with settings that are new, on validation examples."""
        done = self.results.sweeps
        new = _new(settings, seeds, done)
        for setting, seed, _, run in self._runs(self.validation, stage, new):
            done.setdefault(setting, {})[seed] = run
            self._save()

    def compare(self, stage: str, seeds: int, minima: int) -> None:
        """Train with every method and its best radius, on test examples.

        Args:
            stage: a name.
            seeds: number of seeds.
            minima: the number of seeds whose minima are looked at.
        """
        settings = [Setting(*pair) for pair in self.results.rhos.items()]
        self.built = self._built()
        finals, found = self.results.finals, self.results.minima
        done = {
            at: [
                seed
                for seed in finals.get(at.method, ())
                if seed >= minima or seed in found.get(at.method, ())
            ]
            for at in settings
        }
        new = _new(settings, seeds, done)
        for setting, seed, params, run in self._runs(self.test, stage, new):
            self.results.finals.setdefault(setting.method, {})[seed] = run
            if seed < minima:
                found = minimum_at(self.test, params)
                self.results.minima.setdefault(setting.method, {})[seed] = found
            self._save()

    def _runs(
        self, benchmark: Benchmark, stage: str, runs: list[tuple[Setting, int]]
    ) -> Iterator[tuple[Setting, int, Any, Run]]:
        """Setting, seed, parameters and run of each setting and seed."""
        total = len(runs) * self.epochs
        bar = self.progress.add_task(f"{self.name}: {stage}", total=total)
        for setting, seed in runs:
            trainer = self.trainer(setting.method).with_data(benchmark)
            params, run = trainer.train(
                seed, self.epochs, lambda: self.progress.advance(bar), **setting.swept()
            )
            yield setting, seed, params, run

    def _trainer(self, method: str) -> Trainer:
        return Trainer(self.test, method_of(method), Setting(method).swept())

    def _built(self) -> dict[str, str]:
        """The calls of the methods, with the best radii."""
        return {
            text: call
            for method, rho in self.results.rhos.items()
            for at in [self.test._replace(rho=rho)]
            for text, call in built_methods([method], at, self.name).items()
        }

    def _save(self) -> None:
        config = self.config | self.results.document() | {"built": self.built}
        save(self.folder, config, self.results.finals)


def _new(
    settings: Iterable[Setting], seeds: int, done: Mapping[Setting, Container[int]]
) -> list[tuple[Setting, int]]:
    """The settings and seeds that have not been done; the settings take turns."""
    settings = list(settings)
    return [
        (setting, seed)
        for seed in range(seeds)
        for setting in settings
        if seed not in done.get(setting, {})
    ]
