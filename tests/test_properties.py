"""Every combiner has the properties of `property_table`, and no other."""

import numpy as np
import pytest
from scipy.optimize import linprog

import samo_jax

import samplers
from properties import (
    NUM_TASKS,
    PROPERTIES,
    TOLERANCES,
    Scope,
    check_degree,
    check_finite,
    check_property,
    distance,
    matrices,
    run,
)
from property_table import METHODS, TWO_TASKS
from tiers import mostly_slow

RANDOM = {"random_weights", "graddrop"}
scopes = pytest.mark.parametrize(
    "scope",
    [
        Scope("float64", (4,)),
        *(
            pytest.param(Scope(precision, sizes), marks=pytest.mark.slow)
            for precision, sizes in NUM_TASKS.items()
        ),
    ],
    ids=str,
)
OTHER_SETTINGS = {"cagrad-0.5", "cagrad-2", "fairgrad-0.5", "fairgrad-2"}
OTHER_SETTINGS |= {"aligned_mtl-median", "aligned_mtl-rmse"}
# One of each way to an answer.
SOME_METHODS = {
    "mgda",
    "upgrad",
    "fairgrad-1",
    "krum",
    "pcgrad",
    "imtl_g",
    "dwa",
    "moco",
}
methods = pytest.mark.parametrize(
    "name", mostly_slow(METHODS, but=METHODS.keys() - OTHER_SETTINGS)
)


def test_a_weighting_says_its_degree():
    """Of the direction in the gradients, for weights that are kept."""
    for name, method in METHODS.items():
        weighting = method.make(np.arange(1.0, 4), method.hyperparameter)
        if isinstance(weighting, samo_jax.Weighting) and weighting.needs_gramian:
            assert weighting.degree == pytest.approx(method.degree), name


def test_every_combiner_has_its_properties():
    """But those of a second batch, and of several groups of parameters."""
    named = {name.partition("-")[0] for name in METHODS}
    assert set(samo_jax.COMBINERS) - named == {"grouped", "modo", "sdmgrad"}


@pytest.mark.parametrize("num_tasks", mostly_slow([4, 9, 20], but=1))
def test_samplers(num_tasks):
    """By the largest `min(v)` among the v with `v'J = 0` and `sum(v) = 1`, if any."""
    for kind, rank, jac in matrices(num_tasks):
        if kind not in vars(samplers):
            continue
        assert np.linalg.matrix_rank(jac) == rank
        # Variables v and min(v).
        solution = linprog(
            np.append(np.zeros(num_tasks), -1),
            A_ub=np.column_stack([-np.eye(num_tasks), np.ones(num_tasks)]),
            b_ub=np.zeros(num_tasks),
            A_eq=np.pad(np.vstack([jac.T, np.ones(num_tasks)]), ((0, 0), (0, 1))),
            b_eq=np.append(np.zeros(jac.shape[1]), 1),
            bounds=(None, None),
        )
        least = -solution.fun if solution.success else -np.inf
        if kind == "strong":
            assert least > 1e-4
        if kind == "strictly_weak":
            assert abs(least) < 1e-9
        if kind == "non_weak":
            assert least < -1e-4


@pytest.mark.slow
@scopes
@methods
def test_weights_and_directions_are_finite(name, scope):
    check_finite(METHODS[name], scope)


@scopes
@pytest.mark.parametrize("name", mostly_slow(METHODS, but=SOME_METHODS))
def test_degree(name, scope):
    check_degree(METHODS[name], scope)


@scopes
@pytest.mark.parametrize("quality", PROPERTIES)
@methods
def test_property(name, quality, scope):
    if (name, quality) == ("graddrop", "LUS") and scope.num_tasks == (4,):
        pytest.skip("its counterexamples have more tasks")
    check_property(METHODS[name], quality, scope)


@pytest.mark.parametrize("name", mostly_slow(["cagrad-1", "nash_mtl"], but=1))
def test_properties_of_one_task(name):
    runs = run(METHODS[name], 1, "float64")
    for quality in METHODS[name].properties.split():
        worst = max(PROPERTIES[quality](runs), default=0)
        assert worst <= TOLERANCES["float64"]


@pytest.mark.parametrize(("name", "quality"), TWO_TASKS)
def test_property_of_two_tasks(name, quality):
    worst = max(PROPERTIES[quality](run(METHODS[name], 2, "float64")))
    assert worst <= TOLERANCES["float64"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(METHODS) - RANDOM))
def test_float32_is_close_to_float64(name):
    """Also the vectorised run to the sequential one: see `solve`."""
    pairs = zip(*(run(METHODS[name], 4, each) for each in NUM_TASKS), strict=True)
    for single, double in pairs:
        if double.problem.is_independent:
            assert distance(single.direction, double.direction, double.length) < 1e-4
