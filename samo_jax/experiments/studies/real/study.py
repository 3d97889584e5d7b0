"""The study of one data set: learning rate, radii and weights tuned, then all methods.

The learning rate is tuned for the plain mean, a radius for each perturbation, the
weights of `constant` among draws; all on validation examples, with seeds of their own.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from samo_jax.experiments.problems.benchmark import Benchmark
from samo_jax.experiments.reports.scores import finals
from samo_jax.experiments.studies.real.cells import (
    CONSTANT,
    DATA_SETS,
    DRAWS,
    GLOBAL,
    LEARNING_RATES,
    RHOS,
    sharpness_of,
)
from samo_jax.experiments.studies.real.runs import (
    Outcome,
    Setting,
    benchmark_of,
    outcomes,
)
from samo_jax.experiments.training.columns import Column, columns
from samo_jax.experiments.training.grammar import F_MTL
from samo_jax.experiments.training.methods import MEAN, SINGLE_TASK, method_of

T = TypeVar("T")
_FIRST_TUNING_SEED = 1000
_MOST_NETWORKS = 30


class Group(NamedTuple):
    """Settings of one method, which one process trains one after the other.

    Attributes:
        settings: settings that differ in the radius alone.
        seeds: seeds of each.
    """

    settings: list[Setting]
    seeds: list[int]


class Study(NamedTuple):
    """Study of one data set.

    Attributes:
        name: name of the data set.
        folder: folder of all runs.
        data: folder of the data.
        seeds: number of seeds of the final runs.
        tuning_seeds: number of seeds of the tuning runs.
        epochs: number of epochs. None: the data set's.
        given: texts of the methods beside the plain mean and global SAM. None: the
            data set's.
    """

    name: str
    folder: Path
    data: Path | None
    seeds: int
    tuning_seeds: int
    epochs: int | None = None
    given: Sequence[str] | None = None

    @property
    def benchmark(self) -> Benchmark:
        """The benchmark on test examples."""
        return benchmark_of(self.name, "test", self.data)

    @property
    def columns(self) -> list[Column]:
        """The metrics of all tasks."""
        return columns(self.benchmark.tasks)

    def stages(self) -> Iterable[list[Group]]:
        """The groups of each stage; one stage needs the runs of the one before."""
        yield [
            self._tuning([self._setting(MEAN, "validation", lr)])
            for lr in LEARNING_RATES
        ]
        lr = self.learning_rate()
        groups = [
            self._tuning([self._setting(text, "validation", lr, rho) for rho in RHOS])
            for text in self._tuned().values()
        ]
        if CONSTANT in self.methods():
            groups += [self._tuning([of]) for of in self._draws(lr)]
        yield groups
        yield [Group([of], list(range(self.seeds))) for of in self.settings().values()]

    def methods(self) -> list[str]:
        """The texts of the methods; one network a task only where tasks are few."""
        if self.given:
            return list(dict.fromkeys([MEAN, GLOBAL, *self.given]))
        texts = list(DATA_SETS[self.name].methods)
        if len(self.benchmark.tasks) > _MOST_NETWORKS and SINGLE_TASK in texts:
            texts.remove(SINGLE_TASK)
        return texts

    def learning_rate(self) -> float:
        """The best learning rate of the plain mean."""
        tried = {lr: self._setting(MEAN, "validation", lr) for lr in LEARNING_RATES}
        return self._best(tried)

    def settings(self) -> dict[str, Setting]:
        """The final setting of each method."""
        lr = self.learning_rate()
        rhos = {
            sharpness: self._best(
                {rho: self._setting(text, "validation", lr, rho) for rho in RHOS}
            )
            for sharpness, text in self._tuned().items()
        }
        found = {}
        for text in self.methods():
            if text == CONSTANT:
                draws = dict(enumerate(self._draws(lr)))
                draw = self._best(draws)
                found[text] = draws[draw]._replace(split="test")
            else:
                rho = rhos.get(sharpness_of(text))
                found[text] = self._setting(text, "test", lr, rho)
        return found

    def outcomes(self) -> dict[str, dict[int, Outcome]]:
        """The final runs of each method by seed."""
        return {text: outcomes(of, self.folder) for text, of in self.settings().items()}

    def _tuned(self) -> dict[str, str]:
        """The method by which each perturbation's radius is tuned.

        The combiner is the mean. For F-MTL it is FairGrad: with the mean, the parts
        that F-MTL separates are weighted alike.
        """
        found: dict[str, str] = {}
        for text in self.methods():
            if text in (CONSTANT, SINGLE_TASK) or not method_of(text).has_radius:
                continue
            perturbation = method_of(text).perturbation
            is_f_mtl = perturbation is not None and perturbation.name == F_MTL
            sharpness = sharpness_of(text)
            if sharpness not in found or (is_f_mtl and text.startswith("fairgrad")):
                found[sharpness] = text
        return found

    def _setting(self, text, split, lr, rho=None, draw=None) -> Setting:
        return Setting(self.name, split, text, lr, self.epochs, rho, draw)

    def _draws(self, lr: float) -> list[Setting]:
        return [
            self._setting(CONSTANT, "validation", lr, draw=draw)
            for draw in range(DRAWS)
        ]

    def _tuning(self, settings: list[Setting]) -> Group:
        seeds = [_FIRST_TUNING_SEED + number for number in range(self.tuning_seeds)]
        return Group(settings, seeds)

    def _best(self, tried: dict[T, Setting]) -> T:
        """The key of the setting with the greatest mean gain over all of them."""
        found = {
            key: finals(self.columns, outcomes(of, self.folder))
            for key, of in tried.items()
        }
        reference = np.nanmean(list(found.values()), axis=0)
        means = {
            key: float(np.mean(gains(self.columns, of, reference)))
            for key, of in found.items()
        }
        return max(means, key=lambda key: np.nan_to_num(means[key], nan=-np.inf))


def gains(
    columns: list[Column], values: np.ndarray, reference: np.ndarray
) -> np.ndarray:
    """Mean gain over tasks of metrics over others, by seed; more is better.

    In points where all metrics are percentages, else in percent of the reference.

    Args:
        columns: the metrics.
        values: metrics, shape (seeds, columns).
        reference: metrics of the same seeds, shape (seeds, columns).

    >>> gains([Column("a", "error", False)], np.array([[1.5]]), np.array([[2.0]]))
    array([25.])
    """
    sign = np.array([1 if column.higher_is_better else -1 for column in columns])
    change = sign * (values - reference)
    if any(column.unit != "%" for column in columns):
        change = 100 * change / reference
    return change.mean(axis=1)
