"""The runs of one problem: radii on validation, all methods on test examples."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from rich.progress import Progress

from samo_jax.experiments.problems.benchmark import Benchmark
from samo_jax.experiments.problems.small import PROBLEMS
from samo_jax.experiments.reports.scores import best_radius
from samo_jax.experiments.studies.local_parts.costs import Cost, TimedStep
from samo_jax.experiments.studies.local_parts.directions import (
    DIRECTIONS,
    diagnose_directions,
)
from samo_jax.experiments.studies.local_parts.methods import label_of
from samo_jax.experiments.studies.local_parts.report import Outcome, task_errors
from samo_jax.experiments.training.built import built_methods
from samo_jax.experiments.training.columns import columns, fault
from samo_jax.experiments.training.methods import SINGLE_TASK, method_of
from samo_jax.experiments.training.results import check_built, load, save
from samo_jax.experiments.training.runs import Run, merged
from samo_jax.experiments.training.trainer import Trainer, trainers_of

RHOS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
_FIRST_TUNING_SEED = 1000
_TIMED_ROUNDS = 25


class Splits(NamedTuple):
    """Problem with validation examples, and with test examples."""

    validation: Benchmark
    test: Benchmark

    @classmethod
    def load(cls, name: str, epochs: int | None) -> "Splits":
        """The problem of a name; with its own number of epochs where that is None."""
        splits = PROBLEMS[name]("validation"), PROBLEMS[name]("test")
        return cls(*(of._replace(epochs=epochs or of.epochs) for of in splits))


class Measured(NamedTuple):
    """Measurements in `results.json`, beside runs.

    Attributes:
        validation_error: validation error by method, radius and tuning seed.
        built: the calls of the methods that runs have finished with.
        costs: costs by method; they are measured when all runs have finished.
    """

    validation_error: dict[str, dict[str, list[float]]]
    built: dict[str, Any]
    costs: Mapping[str, Cost] = MappingProxyType({})


class Study:
    """Study of one problem, each of whose runs is saved as soon as it has finished."""

    def __init__(
        self,
        problem: Splits,
        methods: list[str],
        tuning_seeds: int,
        seeds: int,
        folder: Path,
        config: dict[str, Any],
    ):
        """Read what the folder has, which is not run again.

        Args:
            problem: problem with its data.
            methods: texts of the methods.
            tuning_seeds: number of seeds by which a radius is chosen.
            seeds: number of others.
            folder: folder for `results.json`.
            config: settings to be saved with the results.
        """
        self.problem, self.methods, self.folder = problem, methods, folder
        self.tuning_seeds, self.seeds, self.config = tuning_seeds, seeds, config
        chosen, epochs = columns(problem.test.tasks), problem.test.epochs

        def fault_of(_, run):
            return fault(chosen, run, epochs) or _directions_fault(run)

        saved, self.runs = load(folder, Run, methods, seeds, fault_of, Measured)
        self.errors = saved.validation_error if saved else {}
        self.costs = saved.costs if saved else {}
        self.built: dict[str, str] = {}
        if saved:
            named = [text for text in methods if text in saved.built]
            self.built |= {text: self._call(text) for text in named}
            check_built(folder, saved.built, self.built)

    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        finished = all(len(self.runs.get(of, ())) == self.seeds for of in self.methods)
        return finished and self.costs.keys() == set(self.methods) - {SINGLE_TASK}

    def run(self, progress: Progress) -> None:
        """Do what is left."""
        tuned = [text for text in self.methods if method_of(text).has_radius]
        count = len(RHOS) * self.tuning_seeds * len(tuned)
        count += self.seeds * len(self.methods)
        tried = [of for by_rho in self.errors.values() for of in by_rho.values()]
        count -= sum(map(len, [*tried, *self.runs.values()]))
        bar = progress.add_task("", total=count * self.problem.test.epochs)
        trainers: dict[str, Trainer] = {}
        for text in self.methods:
            label = label_of(text)
            progress.update(bar, description=f"{label}, compiling")
            networks = self._networks(text)
            if text != SINGLE_TASK:
                [trainers[text]] = networks

            def train(problem, seed, networks=networks, label=label, **swept):
                values = "".join(f", {name} {of:g}" for name, of in swept.items())
                progress.update(bar, description=f"{label}{values}, seed {seed}")
                part = 1 / len(networks)
                return _train(
                    networks, problem, seed, lambda: progress.advance(bar, part), swept
                )

            if text in tuned:
                self._tune(text, train)
            self.built[text] = self._call(text)
            self._finish(text, train)
        progress.update(bar, description="timing")
        self._measure(trainers)

    def outcome(self) -> Outcome:
        """The outcome of all methods."""
        tasks = self.problem.test.tasks
        return Outcome(tasks, self.runs, self.costs, self._rhos(), self.built)

    def _call(self, text: str) -> str:
        """The call of a method, with the best radius where there is one to choose."""
        test = self.problem.test
        best = test._replace(rho=self._rhos().get(text, test.rho))
        return built_methods([text], best, self.config["problem"])[text]

    def _networks(self, text: str) -> list[Trainer]:
        method, test = method_of(text), self.problem.test
        return trainers_of(
            method,
            test,
            swept={"rho": 0.0} if method.has_radius else {},
            diagnose=diagnose_directions(method, test),
        )

    def _tune(self, text: str, train: Any) -> None:
        """Find the errors of all radii."""
        by_rho = self.errors.setdefault(text, {})
        for rho in RHOS:
            of_seeds = by_rho.setdefault(str(rho), [])
            for number in range(len(of_seeds), self.tuning_seeds):
                seed = _FIRST_TUNING_SEED + number
                run = train(self.problem.validation, seed, rho=rho)
                errors = task_errors(run, self.problem.validation.tasks)
                of_seeds.append(float(np.mean(list(errors.values()))))
                self._save()

    def _finish(self, text: str, train: Any) -> None:
        """Train with the best radius, where there is one to choose."""
        done, rhos = self.runs.setdefault(text, {}), self._rhos()
        swept = {"rho": rhos[text]} if text in rhos else {}
        for seed in range(self.seeds):
            if seed not in done:
                done[seed] = train(self.problem.test, seed, **swept)
                self._save()

    def _measure(self, trainers: Mapping[str, Trainer]) -> None:
        steps = {text: TimedStep(text, of) for text, of in trainers.items()}
        rounds = [[of.seconds() for of in steps.values()] for _ in range(_TIMED_ROUNDS)]
        medians = dict(zip(steps, 1e3 * np.median(rounds, axis=0), strict=True))
        self.costs = {of: step.cost(float(medians[of])) for of, step in steps.items()}
        self._save()

    def _rhos(self) -> dict[str, float]:
        """The best radius of each method that has been tuned."""
        found = {
            text: {rho: by_rho.get(str(rho), []) for rho in RHOS}
            for text, by_rho in self.errors.items()
        }
        return {
            text: best_radius(by_rho)
            for text, by_rho in found.items()
            if all(len(of) >= self.tuning_seeds for of in by_rho.values())
        }

    def _save(self) -> None:
        measured = {
            "rhos": RHOS,
            "validation_error": self.errors,
            "built": self.built,
            "costs": {text: cost._asdict() for text, cost in self.costs.items()},
        }
        save(self.folder, self.config | measured, self.runs)


def _train(
    networks: list[Trainer],
    problem: Benchmark,
    seed: int,
    on_epoch: Any,
    swept: Mapping[str, Any],
) -> Run:
    """The run of a method's networks on one split."""
    runs = []
    for trainer in networks:
        part = problem.only(list(trainer.benchmark.tasks))
        runs.append(
            trainer.with_data(part).train(seed, part.epochs, on_epoch, **swept)[1]
        )
    return merged(runs)


def _directions_fault(run: Run) -> str | None:
    """The fault of the directions in a run of a file, None if there is none."""
    for _, agreement in run.agreement_curve:
        if agreement.get("directions", {}).keys() != set(DIRECTIONS):
            return f"its directions are not {', '.join(DIRECTIONS)}"
    return None
