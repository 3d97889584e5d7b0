"""Problems and answers for the table of properties in `test_properties`."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.optimize import nnls

import samo_jax

import samplers


class Method(NamedTuple):
    """`make` takes one positive number per task, and the hyperparameter."""

    make: Callable[..., Any]
    properties: str
    degree: float = 1
    hyperparameter: float = 0
    has_rounded_roots: bool = False


NUM_TASKS = {"float32": (4, 20), "float64": (4, 9)}
TOLERANCES = {"float32": 2e-3, "float64": 1e-11}
TIGHT = {"NC": 1e-1, "NCI": 1e-3, "CONE": 1e-3}
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


class Matrix(NamedTuple):
    """Gradients J of a kind, and the rank that they should have."""

    kind: str
    rank: int
    rows: np.ndarray


def matrices(num_tasks):
    rng = np.random.default_rng(num_tasks)
    found = [
        Matrix(kind, rank, getattr(samplers, kind)(num_tasks, columns, rank, rng))
        for kind, shapes in SHAPES[num_tasks].items()
        for columns, rank in shapes
    ]
    if num_tasks == 4:
        found.append(Matrix("independent", 4, np.array(ASCENDED, float)))
        found += [Matrix("vanishing", 0, np.array(rows, float)) for rows in VANISHING]
        found += [Matrix("degenerate", 0, np.array(rows, float)) for rows in DEGENERATE]
    return [*found, Matrix("zero", 0, np.zeros((num_tasks, 1)))]


class Problem(NamedTuple):
    """Gradients J, and one positive number per task: of a matrix, or a variant of it.

    Attributes:
        matrix: which matrix.
        variant: what was done to it: "" (nothing), "order", "first", "second", "mixed"
            or "scale".
        factor: by what J was scaled, where the variant is "scale".
        jac: J, shape (K, n).
        tasks: shape (K,).
    """

    matrix: int
    kind: str
    rank: int
    variant: str
    factor: float
    jac: np.ndarray
    tasks: np.ndarray

    @property
    def is_independent(self):
        return self.rank == len(self.jac)


def variants(index, matrix, rng):
    """The problem of a matrix, and those to compare with it."""
    jac, tasks = matrix.rows, np.linspace(0.5, 2, len(matrix.rows))
    original = Problem(index, matrix.kind, matrix.rank, "", 1, jac, tasks)
    if matrix.kind in {"zero", "vanishing", "degenerate"}:
        return [original]
    found = [original]
    for _ in range(5):
        order = rng.permutation(len(jac))
        found.append(
            original._replace(variant="order", jac=jac[order], tasks=tasks[order])
        )
    first, second = 10 ** rng.uniform(-1.5, 0, (2, len(jac), 1))
    rows = {"first": first, "second": second, "mixed": 2 * first + 3 * second}
    found += [
        original._replace(variant=name, jac=factors * jac)
        for name, factors in rows.items()
    ]
    if matrix.kind == "normal":
        found += [
            original._replace(variant="scale", factor=scale, jac=scale * jac)
            for scale in SCALES
        ]
    return found


def out_of_range(num_tasks, precision):
    """Entries that are not finite, whose squares overflow, or underflow."""
    extremes = np.finfo(precision).max ** 0.75, np.finfo(precision).tiny ** 0.75
    for value in (np.nan, np.inf, *extremes):
        jac = np.ones((num_tasks, 1))
        jac[-1] = value
        yield Problem(-1, "out of range", 0, "", 1, jac, np.ones(num_tasks))


@cache
def problems(num_tasks, precision):
    """All padded to one shape."""
    rng = np.random.default_rng(0)
    found = list(out_of_range(num_tasks, precision))
    for index, matrix in enumerate(matrices(num_tasks)):
        found += variants(index, matrix, rng)
    width = max(problem.jac.shape[1] for problem in found)
    return [
        problem._replace(
            jac=np.pad(problem.jac, ((0, 0), (0, width - problem.jac.shape[1])))
        )
        for problem in found
    ]


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

    Attributes:
        problem: the problem.
        jac: its gradients, as the precision rounds them.
        weights: the weights.
        answer: the library's d.
        direction: J'w where w determines it, else d.
        size: d's natural size.
        length: the sum of the lengths of d's terms.
    """

    problem: Problem
    jac: np.ndarray
    weights: np.ndarray
    answer: np.ndarray
    direction: np.ndarray
    size: float
    length: float


@cache
def run(method, num_tasks, precision):
    """A `Run` of every problem."""
    given = problems(num_tasks, precision)
    with jax.enable_x64(precision == "float64"):
        jacs = jnp.array(np.stack([problem.jac for problem in given]), float)
        tasks = jnp.array(np.stack([problem.tasks for problem in given]), float)
        parameter = jnp.array(method.hyperparameter, float)
        answers = solve(method.make, num_tasks, precision)(jacs, tasks, parameter)
    made = method.make(np.ones(4), method.hyperparameter)
    found = []
    arrays = [np.asarray(array, float) for array in (jacs, *answers)]
    for problem, jac, answer, weights in zip(given, *arrays, strict=True):
        direction, size, length = answer, 1, np.inf
        if problem.kind != "out of range":
            norms = np.linalg.norm(jac, axis=1)
            length = size = np.mean(norms) ** method.degree if norms.any() else 1
            if isinstance(made, samo_jax.Weighting):
                direction, length = weights @ jac, np.abs(weights) @ norms
        found.append(Run(problem, jac, weights, answer, direction, size, length))
    return found


def compared(runs, variant):
    """Pairs of runs: of the matrix itself, and of its variants of that name."""
    original = None
    for each in runs:
        if not each.problem.variant:
            original = each
        if each.problem.variant == variant:
            yield original, each


def distance(direction, other, length):
    return np.linalg.norm(direction - other) / (length or 1)


def conflicts(runs):
    for each in runs:
        problem = each.problem
        if problem.kind == "out of range":
            continue
        unambiguous = problem.kind == "non_weak" or problem.is_independent
        length = np.linalg.norm(each.direction) if unambiguous else each.length
        against = np.linalg.norm(np.minimum(each.jac @ each.direction, 0))
        yield against / (np.linalg.norm(each.jac) * length or 1)


def conflicts_if_independent(runs):
    return conflicts([each for each in runs if each.problem.is_independent])


def nonlinearity(runs):
    parts = (compared(runs, variant) for variant in ("first", "second", "mixed"))
    for (_, first), (_, second), (_, mixed) in zip(*parts, strict=True):
        total = 2 * first.direction + 3 * second.direction
        yield distance(mixed.direction, total, mixed.length)


def order_dependence(runs):
    for one, other in compared(runs, "order"):
        yield distance(one.direction, other.direction, one.length)


def distance_from_cone(runs):
    for each in runs:
        if each.problem.kind == "out of range":
            continue
        norms = np.linalg.norm(each.jac, axis=1)
        if each.direction is each.answer:
            units = each.jac / np.where(norms, norms, 1)[:, None]
            yield nnls(units.T, each.direction / each.size)[1]
        else:
            yield np.max(-each.weights * norms) / (each.length or 1)


def turning(runs):
    for variant in ("first", "second"):
        for one, other in compared(runs, variant):
            if other.problem.is_independent:
                directions = (each.direction for each in (one, other))
                yield distance(*(d / np.linalg.norm(d) for d in directions), 1)


def vanishing(runs):
    for each in runs:
        kind, variant = each.problem.kind, each.problem.variant
        if kind in {"strictly_weak", "non_weak", "vanishing"} and not variant:
            yield float(np.linalg.norm(each.direction) < 1e-3 * each.size)


def wrong_scaling(runs, degree):
    for one, other in compared(runs, "scale"):
        scaled = other.direction / other.problem.factor**degree
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


class Scope(NamedTuple):
    """The problems that a property is looked for in."""

    precision: str
    num_tasks: tuple[int, ...]

    def runs(self, method):
        return [
            each
            for num_tasks in self.num_tasks
            for each in run(method, num_tasks, self.precision)
        ]

    def __str__(self):
        return f"{self.precision}-{self.num_tasks}"


def tolerance(method, precision, quality=None):
    if method.has_rounded_roots:
        return np.finfo(precision).eps ** 0.5
    return TOLERANCES[precision] * TIGHT.get(quality, 1)


def check_finite(method, scope):
    for each in scope.runs(method):
        assert np.all(np.isfinite(each.weights))
        if np.all(np.isfinite(each.jac)):
            assert np.all(np.isfinite(each.answer))
            error = np.abs(each.answer - each.direction)
            assert np.all(error <= TOLERANCES[scope.precision] * each.length)


def check_degree(method, scope):
    worst = max(wrong_scaling(scope.runs(method), method.degree))
    assert worst <= tolerance(method, scope.precision)


def check_property(method, quality, scope):
    """As its table says: it holds for all matrices, or one is a counterexample."""
    worst = max(PROPERTIES[quality](scope.runs(method)))
    if quality in method.properties.split():
        assert worst <= tolerance(method, scope.precision, quality)
    else:
        assert worst >= COUNTEREXAMPLE
