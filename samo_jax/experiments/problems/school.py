"""School: 139 tasks, each with its own examples."""

from pathlib import Path

import numpy as np

from samo_jax.experiments.data.school import read_school
from samo_jax.experiments.networks.own_examples_net import OwnExamplesNet
from samo_jax.experiments.problems.benchmark import Benchmark, Examples
from samo_jax.experiments.problems.generated import Split
from samo_jax.experiments.problems.own_examples import OwnExamples
from samo_jax.experiments.problems.sizes import scaled
from samo_jax.experiments.problems.tabular_tasks import explained

RECIPE = {
    "batch_size": 20,
    "epochs": 40,
    "learning_rate": 1e-3,
    "rho": 0.1,
    "clip_norm": None,
}
_WIDTHS = (64,)
_PARTS = 4  # of which one is held out


def school(file: Path, split: Split, width: float = 1.0) -> Benchmark:
    """Scores of pupils of 139 schools, each school a task with its own pupils; MLP.

    FILE is MALSAR's school.mat. A quarter of each school's pupils is for test, as in
    the literature; for validation, a quarter of the others is held out. Explained
    variance is that of a school's scores, as Argyriou et al. (2008) have it.
    """
    features, scores = read_school(file)
    names = [f"school{k:03d}" for k in range(1, len(scores) + 1)]
    rng = np.random.default_rng(0)
    train, evaluation = {}, {}
    for name, x, y in zip(names, features, scores, strict=True):
        rest, held_out = _cut(rng.permutation(len(y)))
        if split == "validation":
            rest, held_out = _cut(rest)
        train[name], evaluation[name] = (
            Examples(x[rows], {name: y[rows]}) for rows in (rest, held_out)
        )
    scores_of = np.concatenate([part.labels[name] for name, part in train.items()])
    inputs_of = np.concatenate([part.inputs for part in train.values()])
    mean, deviation = float(scores_of.mean()), float(scores_of.std())
    scale = inputs_of.std(axis=0)
    scale[scale == 0] = 1

    def standardised(parts):
        return OwnExamples(
            {
                name: Examples(
                    (part.inputs - inputs_of.mean(axis=0)) / scale,
                    {name: (part.labels[name] - mean) / deviation},
                )
                for name, part in parts.items()
            }
        )

    def net(tasks):
        return OwnExamplesNet(tuple(tasks), [scaled(n, width) for n in _WIDTHS])

    variances = [float(np.var(y)) / deviation**2 for y in scores]
    return Benchmark(
        dict(zip(names, map(explained, variances), strict=True)),
        net,
        standardised(train),
        standardised(evaluation),
        by_task=True,
        **RECIPE,
    )


def _cut(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All parts but one, and that one."""
    cut = len(rows) - len(rows) // _PARTS
    return rows[:cut], rows[cut:]
