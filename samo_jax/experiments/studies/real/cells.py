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
_BOTH = "gramian_of='representation', weights_every=10"
_CHEAP = f"+multitask({_BOTH})"
PERTURBATIONS: Mapping[str, str] = MappingProxyType(
    {
        "plain": "",
        "global SAM": "+global_sam",
        "SAMO": "+samo",
        "SAMO, shared probe": "+joint_sam(local=probe(shared=True))",
        "random-sign control": "+joint_sam(local=probe(sign='random'))",
        "control, shared probe": "+joint_sam(local=probe(sign='random', shared=True))",
        "F-MTL": "+f_mtl",
        "F-MTL, common, kept 10": "+f_mtl(direction='global', weights_every=10)",
        "F-MTL, common, cheap": f"+f_mtl(direction='global', {_BOTH})",
    }
)
_COMBINERS = ("mean", "fairgrad", "upgrad", "nash_mtl", "famo", "uncertainty")


def _with(combiner: str, *labels: str, settings: str = "") -> list[str]:
    return [combiner + PERTURBATIONS[label] + settings for label in labels]


_LIKE_PAPER = ("plain", "global SAM", "SAMO", "random-sign control", "F-MTL")
_KEPT = "F-MTL, common, kept 10"
# Mean and FairGrad with every perturbation, the others with two. The parts of the
# mean's F-MTL are weighted alike: with a common perturbation it is the mean's SAM.
GRID = (
    *(SINGLE_TASK, CONSTANT),
    *_with("mean", *_LIKE_PAPER),
    *_with("fairgrad", *_LIKE_PAPER, _KEPT),
    *(of for name in _COMBINERS[2:] for of in _with(name, "plain", "global SAM")),
)
# For networks whose steps are dear.
FEW = (
    *(CONSTANT, *_with("mean", "plain", "global SAM", "SAMO")),
    *_with("fairgrad", "plain", "global SAM", _KEPT),
    *_COMBINERS[2:],
)
# For hundreds of tasks.
CHEAP = (
    *(MEAN, GLOBAL, "uncertainty", "famo"),
    *_with("fairgrad", "plain", "global SAM", settings=_CHEAP),
    *_with("fairgrad", "F-MTL, common, cheap"),
)
# For a pretrained encoder. With combiners that do not look at gradients, F-MTL with a
# common perturbation is global SAM.
_SHARED = ("plain", "global SAM", "SAMO, shared probe", "control, shared probe")
FINE_TUNING = (
    *_with("mean", *_SHARED),
    *_with("fairgrad", *_SHARED, settings=_CHEAP),
    *_with("fairgrad", "F-MTL, common, cheap"),
    *_with("uncertainty", *_SHARED),
)
EXACT = ("fairgrad", "fairgrad+global_sam")
RHOS = (0.01, 0.03, 0.1, 0.3)
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
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
            wanted = file or f"the files of {name}"
            raise SystemExit(f"--data: a folder with {wanted} is required (see --help)")
        try:
            found = registry.load(name, folder / file, split, **options)
        except ValueError as error:
            raise SystemExit(f"--data: {error}") from None
        return found._replace(**changes)

    return load


def _qm9(_: Path | None, split: Split) -> Benchmark:
    found = registry.load("qm9", None, split, batch_size=60, width=0.25, molecules=2600)
    return found._replace(epochs=10, clip_norm=None)


def _emotions(train: str, examples: int, **changes) -> Callable:
    return _of_files("emotions", "", changes, train=train, examples=examples)


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
        "emotions_heads": DataSet(
            _emotions("heads", 8000, epochs=5), (*FINE_TUNING, *EXACT)
        ),
        "emotions_lora": DataSet(
            _emotions("lora", 3200, epochs=1), (*FINE_TUNING, *EXACT)
        ),
        "emotions_all": DataSet(_emotions("all", 3200, epochs=1), FINE_TUNING),
    }
)
# Those that are run by default.
DEFAULT = ("digits", "sider", "tox21", "school", "qm9", "toxcast")


def sharpness_of(text: str) -> str:
    """The perturbation, whose radius is tuned once for all combiners."""
    return str(method_of(text).perturbation)


def perturbation_label(text: str) -> str:
    """The label of a method's perturbation, of `PERTURBATIONS` where it has one."""
    found = sharpness_of(text)
    labels = {sharpness_of(MEAN + of): label for label, of in PERTURBATIONS.items()}
    return labels.get(found, found)


def label_of(text: str) -> str:
    """The name of a method in tables."""
    if text == CONSTANT:
        return "constant, tuned"
    method = method_of(text)
    if method.combiner is None or text == MEAN:
        return text
    parts = [str(method.combiner), perturbation_label(text)]
    if method.settings:
        settings = f"+{method.settings}"
        parts.append("cheap" if settings == _CHEAP else settings[1:])
    return ", ".join(parts)


def method_for(text: str, num_tasks: int, draw: int | None = None) -> Method:
    """The method of a text; of `CONSTANT`, with the weights of a draw.

    The weights are uniform on the simplex, times K.
    """
    if text != CONSTANT:
        return method_of(text)
    weights = num_tasks * np.random.default_rng(draw).dirichlet(np.ones(num_tasks))
    return Method(Call("constant", {"weights": weights.tolist()}))
