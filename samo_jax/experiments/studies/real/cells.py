"""Cells of the study: data sets, methods, and which of them are run."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from samo_jax.experiments.problems import generated, registry
from samo_jax.experiments.problems.benchmark import Benchmark
from samo_jax.experiments.problems.generated import Split
from samo_jax.experiments.training.grammar import Call
from samo_jax.experiments.training.methods import (
    MEAN,
    SINGLE_TASK,
    Method,
    method_of,
)

GLOBAL = "mean+global_sam"
CONSTANT = "constant"
PERTURBATIONS: Mapping[str, str] = MappingProxyType(
    {
        "plain": "",
        "global SAM": "+global_sam",
        "SAMO": "+samo",
        "random-sign control": "+joint_sam(local=probe(sign='random'))",
        "F-MTL": "+f_mtl",
        "F-MTL, common, kept 10": "+f_mtl(direction='global', weights_every=10)",
    }
)
_COMBINERS = ("mean", "fairgrad", "upgrad", "nash_mtl", "famo", "uncertainty")
_KEPT = "fairgrad" + PERTURBATIONS["F-MTL, common, kept 10"]
# Mean and FairGrad with every perturbation, the others with two. The parts of the
# mean's F-MTL are weighted alike: with a common perturbation it is the mean's SAM.
GRID = (
    SINGLE_TASK,
    CONSTANT,
    *("mean" + text for label, text in PERTURBATIONS.items() if "common" not in label),
    *("fairgrad" + text for text in PERTURBATIONS.values()),
    *(name + text for name in _COMBINERS[2:] for text in ("", "+global_sam")),
)
# For networks whose steps are dear.
FEW = (
    *(CONSTANT, MEAN, GLOBAL, "mean+samo", "fairgrad", "fairgrad+global_sam", _KEPT),
    *_COMBINERS[2:],
)
_BOTH = "gramian_of='representation', weights_every=10"
# For hundreds of tasks.
CHEAP = (
    *(MEAN, GLOBAL, "uncertainty", "famo"),
    *(f"fairgrad{text}+multitask({_BOTH})" for text in ("", "+global_sam")),
    f"fairgrad+f_mtl(direction='global', {_BOTH})",
)
RHOS = (0.01, 0.03, 0.1, 0.3)
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
DRAWS = 6


class DataSet(NamedTuple):
    """Data set of the study, in a size that fits it.

    Attributes:
        load: function of the folder of data and a split to the benchmark.
        methods: texts of the methods that are run.
    """

    load: Callable[[Path | None, Split], Benchmark]
    methods: tuple[str, ...] = GRID


def _digits(_: Path | None, split: Split) -> Benchmark:
    return generated.digits(split)._replace(clip_norm=None, epochs=15)


def _of_files(name: str, file: str, changes: Mapping, **options) -> Callable:
    def load(folder: Path | None, split: Split) -> Benchmark:
        if folder is None:
            raise SystemExit(f"--data: a folder with {file} is required (see --help)")
        try:
            found = registry.load(name, folder / file, split, **options)
        except ValueError as error:
            raise SystemExit(f"--data: {error}") from None
        return found._replace(**changes)

    return load


def _qm9(_: Path | None, split: Split) -> Benchmark:
    found = registry.load("qm9", None, split, batch_size=60, width=0.25, molecules=2600)
    return found._replace(epochs=10, clip_norm=None)


_molecules = partial(_of_files, "moleculenet")
DATA_SETS: Mapping[str, DataSet] = MappingProxyType(
    {
        "digits": DataSet(_digits),
        "sider": DataSet(_molecules("sider.csv.gz", {"epochs": 12}, width=0.25)),
        "tox21": DataSet(_molecules("tox21.csv.gz", {"epochs": 6}, width=0.25)),
        "school": DataSet(_of_files("school", "school.mat", {})),
        "qm9": DataSet(_qm9, FEW),
        "toxcast": DataSet(
            _molecules("toxcast_data.csv.gz", {"epochs": 6}, width=0.25), CHEAP
        ),
    }
)


def sharpness_of(text: str) -> str:
    """The part of a method's text whose radius is tuned, once for all combiners."""
    return method_of(text).sharpness


def method_for(text: str, num_tasks: int, draw: int | None = None) -> Method:
    """The method of a text; of `CONSTANT`, with the weights of a draw.

    The weights are uniform on the simplex, times K.
    """
    if text != CONSTANT:
        return method_of(text)
    weights = num_tasks * np.random.default_rng(draw).dirichlet(np.ones(num_tasks))
    return Method(Call("constant", {"weights": weights.tolist()}))
