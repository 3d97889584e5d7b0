"""Results of one problem, and what is computed of them."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from samo_jax.experiments.problems.tasks import Task
from samo_jax.experiments.reports.scores import best_radius, finals, relative
from samo_jax.experiments.studies.ablation.minima import Minimum
from samo_jax.experiments.studies.ablation.settings import PLAIN, Setting
from samo_jax.experiments.training.columns import columns, fault
from samo_jax.experiments.training.results import load
from samo_jax.experiments.training.runs import Metrics, Run


class _Sweep(NamedTuple):
    """A run of a sweep, as the file has it: a `Setting`, a seed, and metrics."""

    method: str
    rho: float
    alpha: float
    mu: float
    seed: int
    metrics: Metrics


class _Minimum(NamedTuple):
    """A `Minimum`, as the file has it: with method and seed."""

    method: str
    seed: int
    cosine: float
    conflicts: float
    eigenvalues: list[float]
    heights: list[list[float]]


class _Saved(NamedTuple):
    """Settings of the file, beside runs."""

    rho: dict[str, float]
    sweeps: list[_Sweep]
    minima: list[_Minimum]


class Results(NamedTuple):
    """Measurements so far.

    Attributes:
        tasks: tasks of the problem.
        sweeps: runs by seed, on validation examples.
        rhos: best radius of the sweep, by method.
        finals: runs with this radius on test examples, by method and seed.
        minima: minima of some of these runs.
    """

    tasks: dict[str, Task]
    sweeps: dict[Setting, dict[int, Run]]
    rhos: dict[str, float]
    finals: dict[str, dict[int, Run]]
    minima: dict[str, dict[int, Minimum]]

    @classmethod
    def of(
        cls,
        tasks: dict[str, Task],
        folder: Path,
        epochs: int,
        methods: Collection[str],
    ) -> "Results":
        """The results of `results.json` in a folder; none if there is no such file.

        What cannot be of this problem is left out, and will be trained again.
        """
        results = cls(tasks, {}, {}, {}, {})
        chosen = columns(tasks)
        saved, finals = load(
            folder,
            Run,
            methods,
            check=lambda _, run: fault(chosen, run, epochs),
            settings=_Saved,
        )
        if saved is None:
            return results
        results.finals.update(finals)
        for *setting, seed, metrics in saved.sweeps:
            run = Run(metrics, [], [], float("nan"))
            if setting[0] in methods and fault(chosen, run) is None:
                results.sweeps.setdefault(Setting(*setting), {})[seed] = run
        for method, seed, *fields in saved.minima:
            minimum = Minimum(*fields)
            if method in methods and minimum.has_shape():
                results.minima.setdefault(method, {})[seed] = minimum
        return results

    def delta_m(
        self, runs: Mapping[int, Run], reference: Mapping[int, Run]
    ) -> np.ndarray:
        """Delta m in percent, shape (seeds,), against a method's mean."""
        chosen = columns(self.tasks)
        return relative(chosen, runs, finals(chosen, reference).mean(axis=0))

    def final_delta_m(self, method: str) -> np.ndarray:
        """Delta m on test examples against plain training, shape (seeds,)."""
        return self.delta_m(self.finals[method], self.finals[PLAIN])

    def sweep(self, setting: Setting, parameter: str) -> dict[float, np.ndarray]:
        """Delta m against plain training by the values of one parameter.

        Args:
            setting: setting of the other parameters.
            parameter: "rho", "alpha" or "mu".
        """
        plain = self.sweeps[Setting(PLAIN)]
        same = {parameter: getattr(setting, parameter)}
        return {
            getattr(other, parameter): self.delta_m(self.sweeps[other], plain)
            for other in sorted(self.sweeps)
            if other._replace(**same) == setting
        }

    def best_rho(self, method: str) -> float:
        """The radius whose Delta m is lowest, 0 for plain training."""
        return best_radius(self.sweep(Setting(method), "rho"))

    def document(self) -> dict[str, Any]:
        """The measurements but `finals`, for a file."""
        return {
            "rho": self.rhos,
            "sweeps": [
                {**setting._asdict(), "seed": seed, "metrics": run.metrics}
                for setting, runs in self.sweeps.items()
                for seed, run in runs.items()
            ],
            "minima": [
                {"method": method, "seed": seed, **minimum._asdict()}
                for method, minima in self.minima.items()
                for seed, minimum in minima.items()
            ],
        }
