"""Which method has which property: the table below, in both directions.

Terms and strategy are those of TorchJD and of Quinton and Rey (2024). With d the
direction for the gradients J, a property is a number that is zero where it holds:

NC: no task conflicts with d, `J d >= 0`; NCI: if the gradients are independent.
LUS: linear under scaling, `d(diag(c) J)` is linear in c > 0.
PI: independent of the order of the tasks.
CONE: d is a combination of the gradients with non-negative weights.
RAY: rescaling single gradients, if they are independent, does not turn d.
SS: d vanishes at strongly stationary J only.
DEGREE: `d(s J) = s^degree d(J)`.

For FairGrad and Nash-MTL, SS is the ridge's answer: the equations have no solution.
Methods with a state are in the table with their first update.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy.optimize import linprog, nnls

import samo_jax

import samplers


class Method(NamedTuple):
    """`make` takes one positive number per task, and the hyperparameter."""

    make: Callable
    properties: str
    degree: float = 1
    hyperparameter: float = 0


def gradvac(tasks, target):
    """With constant targets: the solver's own are zero in its first update."""
    targets, key = jnp.full(2 * tasks.shape, target), jax.random.key(0)
    return samo_jax.Weighting(
        lambda _: (),
        lambda gramian, state, **_: (
            samo_jax.gradvac_weights(gramian, targets, key)[0],
            state,
        ),
    )


def cagrad(_, c):
    return samo_jax.cagrad(c)


def fairgrad(_, alpha):
    return samo_jax.fairgrad(alpha)


def fixed(combiner):
    return lambda *_: combiner


def equally(factory, *args, **kwargs):
    return lambda tasks, _: factory(*args, preference=0 * tasks + 1, **kwargs)


def preferring(factory, *args):
    return lambda tasks, _: factory(*args, tasks)


LINEAR = "LUS PI CONE SS"
METHODS = {
    "mean": Method(fixed(samo_jax.mean()), LINEAR),
    "total": Method(fixed(samo_jax.total()), LINEAR),
    "constant": Method(preferring(samo_jax.constant), LINEAR),
    "random_weights": Method(fixed(samo_jax.random_weights(0)), "LUS CONE SS"),
    "mgda": Method(fixed(samo_jax.mgda()), "NC NCI PI CONE"),
    "upgrad": Method(preferring(samo_jax.upgrad), "NC NCI LUS PI CONE SS"),
    "dualproj": Method(preferring(samo_jax.dualproj), "NC NCI PI CONE SS"),
    "cagrad-0.5": Method(cagrad, "PI CONE SS", hyperparameter=0.5),
    "cagrad-1": Method(cagrad, "NC NCI PI CONE SS", hyperparameter=1),
    "cagrad-2": Method(cagrad, "NC NCI PI CONE SS", hyperparameter=2),
    "pcgrad": Method(fixed(samo_jax.pcgrad(0)), "LUS CONE SS"),
    "gradvac": Method(gradvac, "LUS CONE SS", hyperparameter=0.3),
    "imtl_g": Method(fixed(samo_jax.imtl_g()), "PI SS"),
    "aligned_mtl-min": Method(preferring(samo_jax.aligned_mtl, "min"), "PI SS"),
    "aligned_mtl-median": Method(preferring(samo_jax.aligned_mtl, "median"), "PI SS"),
    "aligned_mtl-rmse": Method(preferring(samo_jax.aligned_mtl, "rmse"), "PI SS"),
    "conflict_free_inverse": Method(
        fixed(samo_jax.conflict_free_inverse()), "NCI LUS PI RAY"
    ),
    "nash_mtl": Method(fixed(samo_jax.nash_mtl()), "NC NCI PI CONE RAY SS", 0),
    "fairgrad-0.5": Method(fairgrad, "NC NCI PI CONE SS", 1 / 3, 0.5),
    "fairgrad-1": Method(fairgrad, "NC NCI PI CONE RAY SS", 0, 1),
    "fairgrad-2": Method(fairgrad, "NC NCI PI CONE SS", -1 / 3, 2),
    "db_mtl": Method(fixed(samo_jax.db_mtl()), "PI CONE RAY SS"),
    "krum": Method(fixed(samo_jax.krum(1, 2)), "PI CONE"),
    "gradnorm": Method(fixed(samo_jax.gradnorm()), LINEAR),
    "smoothed": Method(fixed(samo_jax.smoothed(samo_jax.db_mtl())), "PI CONE RAY SS"),
    "geometric_mean": Method(fixed(samo_jax.geometric_mean()), LINEAR),
    "stch": Method(fixed(samo_jax.stch(0.3)), LINEAR),
    "famo": Method(fixed(samo_jax.famo()), LINEAR),
    "uncertainty": Method(fixed(samo_jax.uncertainty()), LINEAR),
    "imtl_l": Method(fixed(samo_jax.imtl_l()), LINEAR),
    "dwa": Method(fixed(samo_jax.dwa(window=1)), LINEAR),
    "pbi": Method(equally(samo_jax.pbi, 5**0.5), "LUS PI"),
    "cosmos": Method(equally(samo_jax.cosmos, lam=270**0.5), "LUS PI"),
    "log_losses": Method(
        fixed(samo_jax.log_losses(samo_jax.conflict_free_inverse())), "NCI LUS PI RAY"
    ),
    "graddrop": Method(fixed(samo_jax.graddrop(0)), "PI SS"),
    "trimmed_mean": Method(fixed(samo_jax.trimmed_mean(1)), "PI"),
    "moco": Method(fixed(samo_jax.moco(gamma=40.0)), "PI CONE RAY SS", 0),
    "excess_mtl": Method(fixed(samo_jax.excess_mtl()), LINEAR),
    "db_mtl_momentum": Method(fixed(samo_jax.db_mtl_momentum()), "PI CONE RAY SS"),
}
# What holds for two tasks only.
TWO_TASKS = [("pcgrad", "NC"), ("imtl_g", "NC"), ("imtl_g", "RAY")]
RANDOM = {"random_weights", "graddrop"}
NUM_TASKS = {"float32": [4, 20], "float64": [4, 9]}
TOLERANCES = {"float32": 2e-3, "float64": 1e-11}
TIGHT = {"NC": 1e-1, "NCI": 1e-3, "CONE": 1e-3}
ROUNDED_ROOTS = {"gradvac"}
COUNTEREXAMPLE = 5e-3
SHAPES = {  # of each kind the pairs of the number of columns and the rank
    1: {"normal": [(1, 1)]},
    2: {"normal": [(3, 2)], "strong": [(3, 1)]},
    4: {
        "normal": [(3, 1), (3, 2), (3, 3), (5, 4)],
        "strong": [(3, 2)],
        "strictly_weak": [(3, 2)],
        "non_weak": [(3, 3), (5, 4)],
    },
    9: {
        "normal": [(11, 5), (11, 9)],
        "strong": [(11, 5)],
        "strictly_weak": [(11, 5)],
        "non_weak": [(11, 5)],
    },
    20: {
        "normal": [(100, 20)],
        "strong": [(10, 10), (10, 5), (10, 1), (100, 1), (100, 19)],
        "strictly_weak": [(10, 10), (10, 5), (10, 1), (100, 1), (100, 19)],
        "non_weak": [(10, 10), (10, 5), (10, 1), (100, 1), (100, 19)],
    },
}
# Not strongly stationary, but d vanishes: for Krum and MoCo; TrimmedMean; ConFIG, alone
# and for log losses; PBI and COSMOS.
TASKS = np.linspace(0.5, 2, 4)
UNPROJECTED = np.array([[1, 0, 0], [0, 1, 0], [-3 - 2**0.5, -3 - 2**0.5, 0], [0, 0, 1]])
VANISHING = [
    [[0, 0], [0, 0], [9, 0], [0, 9]],
    [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]],
    UNPROJECTED,
    TASKS[:, None] * UNPROJECTED,
    [[1], [1], [1], [0]],
]
# IMTL-G ascends where the first gradient is shorter than that.
ASCENDED = [[0.8, 0.8, 0.4, 0], [3, 0, 0, 0], [0, 4, 0, 0], [0, 0, 0, 5]]
DEGENERATE = [
    [[1, 2, 0], [0, 0, 0], [2, -1, 1], [0, 0, 0]],
    [[1, 2, 0], [1, 2, 0], [2, -1, 1], [1, 2, 0]],
    [[1, 2, 0], [-1, -2, 0], [100, 200, 0], [-1, -2, 0]],
    [[1, 2, 3], [2, 4, 6], [0.5, 1, 1.5], [1, 2, 3]],
    [[1, 0, 0], [0, 1, 0], [-1, -1, 0], [0, 0, 1]],
]
SCALES = [1e-10, 1e3, 1e5, 1e10, 1e15]


def matrices(num_tasks):
    """(kind, rank, number) to J."""
    rng = np.random.default_rng(num_tasks)
    found = {
        (kind, rank, i): getattr(samplers, kind)(num_tasks, columns, rank, rng)
        for kind, pairs in SHAPES[num_tasks].items()
        for i, (columns, rank) in enumerate(pairs)
    }
    if num_tasks == 4:
        found["independent", 4, 0] = np.array(ASCENDED, float)
        for kind, rows in (("vanishing", VANISHING), ("degenerate", DEGENERATE)):
            found |= {(kind, 0, i): np.array(x, float) for i, x in enumerate(rows)}
    return found | {("zero", 0, 0): np.zeros((num_tasks, 1))}


def variants(kind, jac, rng):
    """Problems to compare with J's own: name to (J, one number per task)."""
    tasks = np.linspace(0.5, 2, len(jac))
    found = {"": (jac, tasks)}
    if kind in {"zero", "vanishing", "degenerate"}:
        return found
    for i in range(5):
        order = rng.permutation(len(jac))
        found["order", i] = (jac[order], tasks[order])
    first, second = 10 ** rng.uniform(-1.5, 0, (2, len(jac), 1))
    rows = {"first": first, "second": second, "mixed": 2 * first + 3 * second}
    found |= {name: (factors * jac, tasks) for name, factors in rows.items()}
    if kind == "normal":
        found |= {("scale", s): (s * jac, tasks) for s in SCALES}
    return found


def out_of_range(num_tasks, precision):
    """Entries that are not finite, whose squares overflow, or underflow."""
    jac, tasks = np.ones((num_tasks, 1)), np.ones(num_tasks)
    extremes = np.finfo(precision).max ** 0.75, np.finfo(precision).tiny ** 0.75
    for value in (np.nan, np.inf, *extremes):
        jac[-1] = value
        yield ("out of range", 0, value, ""), (jac.copy(), tasks)


@cache
def problems(num_tasks, precision):
    """(kind, rank, number, variant) to (J, one number per task), of one shape."""
    rng = np.random.default_rng(0)
    found = dict(out_of_range(num_tasks, precision)) | {
        (*label, name): problem
        for label, jac in matrices(num_tasks).items()
        for name, problem in variants(label[0], jac, rng).items()
    }
    width = max(jac.shape[1] for jac, _ in found.values())
    return {
        label: (np.pad(jac, ((0, 0), (0, width - jac.shape[1]))), tasks)
        for label, (jac, tasks) in found.items()
    }


@cache
def solve(make, num_tasks, precision):
    """Jitted: stacked problems and hyperparameter to directions and weights."""

    def solve_one(jac, tasks, hyperparameter):
        method = make(tasks, hyperparameter)
        if isinstance(method, samo_jax.Weighting):
            state = method.init(num_tasks)
            weights, _ = method.update(samo_jax.gramian(jac), state, losses=tasks)
            return samo_jax.combine(weights, jac), weights
        state = method.init(jac[0], num_tasks)
        return method.update(jac, state, losses=tasks)[:2]

    def solve_all(jacs, tasks, h):
        if precision == "float32" and num_tasks == 4:
            return jax.vmap(solve_one, (0, 0, None))(jacs, tasks, h)
        return lax.map(lambda problem: solve_one(*problem, h), (jacs, tasks))

    return jax.jit(solve_all)


class Run(NamedTuple):
    """A problem and the answer to it, in float64.

    `answer` is the library's d, `direction` is J'w where w determines it; `size` is d's
    natural size, `length` the sum of the lengths of its terms.
    """

    jac: np.ndarray
    weights: np.ndarray
    answer: np.ndarray
    direction: np.ndarray
    size: float
    length: float


def uses_gramian(method):
    return isinstance(
        method.make(np.ones(4), method.hyperparameter), samo_jax.Weighting
    )


@cache
def run_all(name, num_tasks, precision):
    """(K, kind, rank, number, variant) to `Run`."""
    method, labelled = METHODS[name], problems(num_tasks, precision)
    with jax.enable_x64(precision == "float64"):
        stacked = [jnp.array(a, float) for a in zip(*labelled.values(), strict=True)]
        parameter = jnp.array(method.hyperparameter, float)
        answers = solve(method.make, num_tasks, precision)(*stacked, parameter)
    found = {}
    arrays = [np.asarray(a, float) for a in (stacked[0], *answers)]
    for label, jac, answer, weights in zip(labelled, *arrays, strict=True):
        direction, size, length = answer, 1, np.inf
        if label[0] != "out of range":
            norms = np.linalg.norm(jac, axis=1)
            length = size = np.mean(norms) ** method.degree if norms.any() else 1
            if uses_gramian(method):
                direction, length = weights @ jac, np.abs(weights) @ norms
        found[num_tasks, *label] = Run(jac, weights, answer, direction, size, length)
    return found


@cache
def runs(name, precision):
    return {
        label: run
        for num_tasks in NUM_TASKS[precision]
        for label, run in run_all(name, num_tasks, precision).items()
    }


def within_range(found):
    return {label: run for label, run in found.items() if label[1] != "out of range"}


def compared(found, variant):
    """Pairs of runs: the matrix itself and its variants of that name."""
    for label, run in found.items():
        if label[-1] == variant or label[-1][:1] == (variant,):
            yield found[*label[:-1], ""], run, label


def independent(label):
    return label[0] == label[2]


def distance(direction, other, length):
    return np.linalg.norm(direction - other) / (length or 1)


def conflicts(found):
    for label, run in within_range(found).items():
        unambiguous = label[1] == "non_weak" or independent(label)
        length = np.linalg.norm(run.direction) if unambiguous else run.length
        against = np.linalg.norm(np.minimum(run.jac @ run.direction, 0))
        yield against / (np.linalg.norm(run.jac) * length or 1)


def conflicts_if_independent(found):
    return conflicts({k: run for k, run in found.items() if independent(k)})


def nonlinearity(found):
    for _, run, label in compared(found, "mixed"):
        first, second = (found[*label[:-1], name] for name in ("first", "second"))
        total = 2 * first.direction + 3 * second.direction
        yield distance(run.direction, total, run.length)


def order_dependence(found):
    for one, other, _ in compared(found, "order"):
        yield distance(one.direction, other.direction, one.length)


def distance_from_cone(found):
    for run in within_range(found).values():
        norms = np.linalg.norm(run.jac, axis=1)
        if run.direction is run.answer:
            units = run.jac / np.where(norms, norms, 1)[:, None]
            yield nnls(units.T, run.direction / run.size)[1]
        else:
            yield np.max(-run.weights * norms) / (run.length or 1)


def turning(found):
    for variant in ("first", "second"):
        for one, other, label in compared(found, variant):
            if independent(label):
                units = (d / np.linalg.norm(d) for _, _, _, d, *_ in (one, other))
                yield distance(*units, 1)


def vanishing(found):
    for label, run in found.items():
        if label[1] in {"strictly_weak", "non_weak", "vanishing"} and not label[-1]:
            yield float(np.linalg.norm(run.direction) < 1e-3 * run.size)


def wrong_scaling(found, degree):
    for one, other, label in compared(found, "scale"):
        scaled = other.direction / label[-1][1] ** degree
        yield distance(scaled, one.direction, one.length)


PROPERTIES = {
    "NC": conflicts,
    "NCI": conflicts_if_independent,
    "LUS": nonlinearity,
    "PI": order_dependence,
    "CONE": distance_from_cone,
    "RAY": turning,
    "SS": vanishing,
}
precisions = pytest.mark.parametrize("precision", NUM_TASKS)
methods = pytest.mark.parametrize("name", METHODS)


def tolerance(name, precision, quality=None):
    if name in ROUNDED_ROOTS:
        return np.finfo(precision).eps ** 0.5
    return TOLERANCES[precision] * TIGHT.get(quality, 1)


@pytest.mark.parametrize("num_tasks", [4, 9, 20])
def test_samplers(num_tasks):
    """By the largest `min(v)` among the v with `v'J = 0` and `sum(v) = 1`, if any."""
    for (kind, rank, _), jac in matrices(num_tasks).items():
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


@precisions
@methods
def test_weights_and_directions_are_finite(name, precision):
    for run in runs(name, precision).values():
        assert np.all(np.isfinite(run.weights))
        if np.all(np.isfinite(run.jac)):
            assert np.all(np.isfinite(run.answer))
            error = np.abs(run.answer - run.direction)
            assert np.all(error <= TOLERANCES[precision] * run.length)


@precisions
@pytest.mark.parametrize("quality", PROPERTIES)
@methods
def test_property(name, quality, precision):
    """As the table says: it holds for all matrices, or one is a counterexample."""
    worst = max(PROPERTIES[quality](runs(name, precision)))
    if quality in METHODS[name].properties.split():
        assert worst <= tolerance(name, precision, quality)
    else:
        assert worst >= COUNTEREXAMPLE


@pytest.mark.parametrize("name", ["cagrad-1", "nash_mtl"])
def test_properties_of_one_task(name):
    for quality in METHODS[name].properties.split():
        worst = max(PROPERTIES[quality](run_all(name, 1, "float64")), default=0)
        assert worst <= TOLERANCES["float64"]


@pytest.mark.parametrize(("name", "quality"), TWO_TASKS)
def test_property_of_two_tasks(name, quality):
    worst = max(PROPERTIES[quality](run_all(name, 2, "float64")))
    assert worst <= TOLERANCES["float64"]


@precisions
@methods
def test_degree(name, precision):
    worst = max(wrong_scaling(runs(name, precision), METHODS[name].degree))
    assert worst <= tolerance(name, precision)


@pytest.mark.parametrize("name", sorted(set(METHODS) - RANDOM))
def test_float32_is_close_to_float64(name):
    """Also the vectorised run to the sequential one: see `solve`."""
    single, double = (run_all(name, 4, precision) for precision in NUM_TASKS)
    for label, run in double.items():
        if independent(label):
            assert distance(single[label].direction, run.direction, run.length) < 1e-4
