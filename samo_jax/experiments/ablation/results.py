"""The results of one problem, and what is computed of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from samo_jax.experiments.ablation.methods import PLAIN, Setting
from samo_jax.experiments.ablation.minima import Minimum
from samo_jax.experiments.benchmarks.scores import columns, finals, relative
from samo_jax.experiments.benchmarks.tasks import Task
from samo_jax.experiments.benchmarks.training import Run
from samo_jax.experiments.tables import load


class Results(NamedTuple):
    """What has been measured so far.

    Attributes:
        tasks: of the problem.
        sweeps: runs by seed, on validation examples.
        rhos: of each method, the best of the sweep.
        finals: of each method with this radius, runs by seed, on test examples.
        minima: of some of these.
    """

    tasks: dict[str, Task]
    sweeps: dict[Setting, dict[int, Run]]
    rhos: dict[str, float]
    finals: dict[str, dict[int, Run]]
    minima: dict[str, dict[int, Minimum]]

    @classmethod
    def of(cls, tasks: dict[str, Task], folder: Path) -> "Results":
        """What `results.json` in a folder has; nothing if there is none."""
        results = cls(tasks, {}, {}, {}, {})
        document, finals = load(folder, Run)
        if not document:
            return results
        results.finals.update(finals)
        results.rhos.update(document["rho"])
        for run in document["sweeps"]:
            seed, metrics = run.pop("seed"), run.pop("metrics")
            results.sweeps.setdefault(Setting(**run), {})[seed] = Run(
                metrics, [], [], float("nan")
            )
        for minimum in document["minima"]:
            method, seed = minimum.pop("method"), minimum.pop("seed")
            results.minima.setdefault(method, {})[seed] = Minimum(**minimum)
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
            setting: for the other parameters.
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
        by_rho = self.sweep(Setting(method), "rho")
        return min(by_rho, key=lambda rho: by_rho[rho].mean())

    def document(self) -> dict[str, Any]:
        """All but `finals`, for a file."""
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
