"""Runs of the study: settings of a method on a data set, trained and kept in a file."""

import json
import re
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from samo_jax.experiments.problems.benchmark import Benchmark
from samo_jax.experiments.problems.generated import Split
from samo_jax.experiments.studies.real.cells import DATA_SETS, method_for
from samo_jax.experiments.training.results import replace
from samo_jax.experiments.training.runs import Metrics, merged
from samo_jax.experiments.training.schema import conform, read
from samo_jax.experiments.training.trainer import Trainer, trainers_of


class Setting(NamedTuple):
    """Setting of a method on a data set.

    Attributes:
        data_set: name of the data set.
        split: split to evaluate on.
        method: text of the method.
        learning_rate: learning rate.
        epochs: number of epochs. None: the data set's.
        rho: radius. None: the method has none.
        draw: number of the draw of constant weights. None: of other methods.
    """

    data_set: str
    split: Split
    method: str
    learning_rate: float
    epochs: int | None = None
    rho: float | None = None
    draw: int | None = None

    def file(self, folder: Path) -> Path:
        """The file of its runs."""
        name = re.sub(r"\W+", "_", self.method).strip("_")
        key = sha256(json.dumps(self).encode()).hexdigest()[:8]
        return folder / self.data_set / f"{name}-{key}.json"


class Outcome(NamedTuple):
    """Outcome of a run.

    Attributes:
        seed: seed of the run.
        metrics: metrics of each task.
        seconds_per_step: time of a step.
        temporary_bytes: peak of a step's temporary memory, of one of the final runs.
    """

    seed: int
    metrics: Metrics
    seconds_per_step: float
    temporary_bytes: int | None = None


def outcomes(setting: Setting, folder: Path) -> dict[int, Outcome]:
    """The finished runs of a setting by seed."""
    path = setting.file(folder)
    if not path.exists():
        return {}
    try:
        found = conform(read(path), list[Outcome], "it")
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"{path} cannot be read: {error}. Without it, --resume trains anew"
        ) from None
    return {of.seed: of for of in sorted(found, key=lambda of: of.seed)}


def train(
    settings: list[Setting],
    seeds: list[int],
    folder: Path,
    data: Path | None,
) -> None:
    """Train what is missing, and keep each run as soon as it has finished.

    Args:
        settings: settings, best of one method, which is compiled once for all radii.
        seeds: seeds of each setting.
        folder: folder of the study.
        data: folder of the data.
    """
    for setting in settings:
        done = outcomes(setting, folder)
        for seed in seeds:
            if seed in done:
                continue
            done[seed] = _run(setting, seed, data)
            text = json.dumps([of._asdict() for of in done.values()], indent=1)
            replace(setting.file(folder), text)


def _run(setting: Setting, seed: int, data: Path | None) -> Outcome:
    networks = _trainers(setting._replace(rho=None), setting.rho is not None, data)
    swept: dict[str, Any] = {} if setting.rho is None else {"rho": setting.rho}
    run = merged(
        [
            of.train(seed, of.benchmark.epochs, lambda: None, **swept)[1]
            for of in networks
        ]
    )
    measured = setting.split == "test" and seed == 0
    memory = max(of.temporary_bytes() for of in networks) if measured else None
    return Outcome(seed, run.metrics, run.seconds_per_step, memory)


@lru_cache(maxsize=1)
def _trainers(setting: Setting, tuned: bool, data: Path | None) -> list[Trainer]:
    benchmark = benchmark_of(setting.data_set, setting.split, data)._replace(
        learning_rate=setting.learning_rate
    )
    if setting.epochs is not None:
        benchmark = benchmark._replace(epochs=setting.epochs)
    method = method_for(setting.method, len(benchmark.tasks), setting.draw)
    return trainers_of(method, benchmark, swept={"rho": 0.0} if tuned else {})


@lru_cache(maxsize=2)
def benchmark_of(name: str, split: Split, data: Path | None) -> Benchmark:
    """The benchmark of a data set, read once."""
    return DATA_SETS[name].load(data, split)
