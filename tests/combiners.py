"""Every combiner of the registry, and variants of it that run other code."""

from typing import Any, NamedTuple

import jax
import numpy as np

import samo_jax
from samo_jax import COMBINERS

KEY = jax.random.key(0)
PREFERENCE = np.array([0.5, 0.2, 0.3])


class Case(NamedTuple):
    """One combiner with some arguments."""

    name: str
    variant: str = ""
    arguments: dict[str, Any] = {}  # noqa: RUF012
    per_task: str = ""

    @property
    def entry(self):
        return COMBINERS[self.name]

    def make(self, tasks):
        """The combiner of K tasks, or of those with these indices."""
        tasks = np.arange(tasks) if isinstance(tasks, int) else np.asarray(tasks)
        arguments = dict(self.arguments)
        if self.per_task:
            arguments[self.per_task] = np.resize(PREFERENCE, tasks.max() + 1)[tasks]
        return self.entry.make(len(tasks), KEY, **arguments)

    def promises(self, promise, num_tasks):
        """Whether the registry promises it for so many tasks, whatever else."""
        condition = self.entry.promises.get(promise)
        return condition in ("", f"K = {num_tasks}")

    @property
    def needs_second_batch(self):
        return "second batch" in self.entry.needs

    def __str__(self):
        return f"{self.name}-{self.variant}" if self.variant else self.name


VARIANTS = [
    Case("mgda", "l2", {"normalization": "l2"}),
    Case("mgda", "loss", {"normalization": "loss"}),
    Case("mgda", "loss+", {"normalization": "loss+"}),
    Case("mgda", "preference", per_task="preference"),
    Case("fairgrad", "2", {"alpha": 2.0}),
    Case("fairgrad", "preference", {"alpha": 0.5}, "preference"),
    Case("nash_mtl", "preference", per_task="preference"),
    Case("nash_mtl", "now and then", {"update_every": 3}),
    Case("krum", "one", {"num_selected": 1}),
    Case("cagrad", "1.5", {"c": 1.5}),
    Case("cagrad", "preference", {"c": 1.0}, "preference"),
    Case("aligned_mtl", "median", {"scale_mode": "median"}),
    Case("aligned_mtl", "rmse", {"scale_mode": "rmse"}),
    Case("graddrop", "leak", per_task="leak"),
    Case("moco", "raw", {"decay": 0.0, "gamma": 0.01, "normalize": False}),
    Case("pcd", "0", {"tau": 0.0}),
    Case("sdmgrad", "preference", {"learning_rate": 0.1}, "preference"),
    Case("stch", "preference", {"mu": 0.3}, "preference"),
    Case("log_losses", "mean", {"weighting": samo_jax.mean()}),
    Case("log_losses", "gradnorm", {"weighting": samo_jax.gradnorm()}),
    Case("smoothed", "geometric_mean", {"weighting": samo_jax.geometric_mean()}),
    Case("normalized", "running", {"norm": "running", "combiner": samo_jax.upgrad()}),
    Case("grouped", "gradnorm", {"weighting": samo_jax.smoothed(samo_jax.gradnorm())}),
]
# Losses that a preference or weights of these tasks make different.
PER_TASK = {"constant": "weights", "pbi": "preference", "cosmos": "preference"}
ENTRIES = [Case(name, per_task=PER_TASK.get(name, "")) for name in COMBINERS]
CASES = ENTRIES + VARIANTS
# One of each kind: solved in a loop, with a memory, at random; of losses; of gradients,
# with a memory, of a second batch.
REPRESENTATIVES = [
    case
    for case in ENTRIES
    if case.name in {"mgda", "gradnorm", "pcgrad", "dwa", "stch", "moco", "modo"}
]
