"""What every combiner of the registry has in common, and what the registry promises."""

import functools
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samo_jax
from samo_jax import COMBINERS
from samo_jax._combiners._types import combiner_update, init_combiner

from combiners import CASES, ENTRIES, KEY, REPRESENTATIVES
from three_heads import NUM_TASKS, assert_finite, types
from tiers import mostly_slow

SLOW_TO_COMPILE = {"upgrad", "dualproj", "cagrad", "fairgrad", "nash_mtl"}
SLOW_TO_COMPILE |= {"grouped", "smoothed", "log_losses"}
QUICK = [case for case in ENTRIES if case.name not in SLOW_TO_COMPILE]
quick_cases, few_cases = (
    pytest.mark.parametrize("case", mostly_slow(CASES, but=first), ids=str)
    for first in (QUICK, REPRESENTATIVES)
)
gramian_cases, aggregators = (
    pytest.mark.parametrize(
        "case",
        mostly_slow(
            [case for case in ENTRIES if case.entry.family == family],
            but=[case for case in REPRESENTATIVES if case.entry.family == family],
        ),
        ids=str,
    )
    for family in ("gramian", "gradients")
)
SCALES = [1e-10, 1.0, 1e10]
WIDTH = 7
DEGENERATE = {
    "a zero row": [[1, 2, 0], [0, 0, 0], [2, -1, 1]],
    "duplicates": [[1, 2, 0], [1, 2, 0], [2, -1, 1]],
    "opposite": [[1, 2, 0], [-1, -2, 0], [0, 0, 0]],
    "opposite, unequal": [[1, 2, 0], [-100, -200, 0], [1, 2, 0]],
    "rank one": [[1, 2, 3], [2, 4, 6], [0.5, 1, 1.5]],
    "opposite, rank one": [[1, 2, 0], [2, 4, 0], [-3, -6, 0]],
    "stationary": [[1, 0, 0], [0, 1, 0], [-1, -1, 0]],
    "weakly stationary": [[1, 0, 0], [-1, 0, 0], [0, 1, 0]],
    "one after all": [[0, 0, 0], [0, 0, 0], [1, 2, 3]],
    "all zero": [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
}
BATCH = len(DEGENERATE) * len(SCALES)  # one compilation for all problems


class Problems(NamedTuple):
    """Gradients, shape (B, K, n), and losses, shape (B, K)."""

    gradients: np.ndarray
    losses: np.ndarray

    def scaled(self, factors):
        """Each task's loss and gradient times a factor."""
        factors = np.asarray(factors)
        return Problems(self.gradients * factors[..., None], self.losses * factors)


class Updates(NamedTuple):
    """Directions, shape (B, n), and weights, shape (B, K), in float64."""

    directions: np.ndarray
    weights: np.ndarray


def random_problems(num_tasks, count=BATCH):
    rng = np.random.default_rng(num_tasks)
    gradients = rng.normal(size=(count, num_tasks, WIDTH))
    gradients *= 10 ** rng.uniform(-0.5, 0.5, size=(count, num_tasks, 1))
    return Problems(gradients, rng.uniform(0.5, 2, size=(count, num_tasks)))


def degenerate_problems():
    """Every kind at every scale."""
    rows = np.array(list(DEGENERATE.values()), float)
    rows = np.pad(rows, ((0, 0), (0, 0), (0, WIDTH - rows.shape[2])))
    gradients = np.concatenate([scale * rows for scale in SCALES])
    losses = np.linspace(0.5, 2, NUM_TASKS)
    return Problems(gradients, np.tile(losses, (len(gradients), 1)))


def init(case, num_tasks=NUM_TASKS):
    combiner = case.make(num_tasks)
    return init_combiner(combiner, {"x": jnp.zeros(WIDTH)}, num_tasks)


@functools.cache
def step(case_index, num_tasks=NUM_TASKS):
    """One update of float32 gradients: (direction, weights, state)."""
    case = CASES[case_index]
    update = combiner_update(case.make(num_tasks))

    def run(gradients, losses, state):
        task_grads = {"x": gradients}
        second = {"sample_grads": [task_grads]} if case.needs_second_batch else {}
        direction, weights, state = update(
            task_grads, state, losses=losses, unknown=None, **second
        )
        return direction["x"], weights, state

    return run


@functools.cache
def jitted_step(case_index):
    return jax.jit(step(case_index))


@functools.cache
def batched_step(case_index, num_tasks):
    return jax.jit(jax.vmap(step(case_index, num_tasks), (0, 0, None)))


def first_updates(case, problems):
    num_tasks = problems.losses.shape[1]
    directions, weights, _ = batched_step(CASES.index(case), num_tasks)(
        np.float32(problems.gradients),
        np.float32(problems.losses),
        init(case, num_tasks),
    )
    return Updates(np.asarray(directions, float), np.asarray(weights, float))


def solves(case):
    return (case.entry.family, case.variant) == ("gramian", "") and case.name not in {
        "gradnorm"
    }


def norms(vectors):
    return np.linalg.norm(vectors, axis=-1)


def conflicts(gradients, updates):
    """The worst ascent of a task, relative to the length of d's terms."""
    rates = np.einsum("bkn,bn->bk", gradients, updates.directions)
    rates /= np.maximum(norms(gradients), 1e-30)
    terms = np.sum(np.abs(updates.weights) * norms(gradients), axis=1)
    return np.max(-rates, axis=1) / np.maximum(terms, 1e-30)


def test_the_registry_has_every_public_combiner():
    factories = {
        name
        for name, value in vars(samo_jax).items()
        if inspect.isfunction(value)
        and inspect.signature(value).return_annotation
        in (
            samo_jax.Weighting,
            samo_jax.Aggregator,
            samo_jax.Weighting | samo_jax.Aggregator,
        )
    }
    assert factories == set(COMBINERS)


@few_cases
def test_degenerate_gradients_have_finite_directions(case):
    problems = degenerate_problems()
    found = first_updates(case, problems)
    assert np.isfinite(found.directions).all()
    assert np.isfinite(found.weights).all()
    if case.promises("N", NUM_TASKS) and case.promises("+", NUM_TASKS):
        assert (found.weights > 0).any(axis=1).all()
        zeros = norms(problems.gradients) == 0
        assert (found.weights[zeros] <= 1 / NUM_TASKS + 1e-6).all()
    of_their_own_length = {"fairgrad", "nash_mtl", "normalized"}
    if case.entry.family == "gramian" and case.name not in of_their_own_length:
        longest = norms(problems.gradients).max(axis=1)
        assert (norms(found.directions) <= 100 * longest).all()
    zero = norms(problems.gradients).sum(axis=1) == 0
    assert not found.directions[zero].any()


@pytest.mark.parametrize(
    ("case", "num_tasks"),
    mostly_slow(
        [
            *((case, NUM_TASKS) for case in CASES),
            *((case, 2) for case in CASES if "K = 2" in case.entry.promises.values()),
        ],
        but=[(case, NUM_TASKS) for case in QUICK],
        several=True,
    ),
    ids=str,
)
def test_promises_of_the_registry(case, num_tasks):
    problems = random_problems(num_tasks)
    found = first_updates(case, problems)
    if case.promises("+", num_tasks):
        assert (found.weights >= 0).all()
    rng = np.random.default_rng(0)
    one, other = 10 ** rng.uniform(-1, 1, size=(2, *problems.losses.shape))
    if case.promises("S", num_tasks):
        scaled = first_updates(case, problems.scaled(one)).directions
        units = (d / norms(d)[:, None] for d in (found.directions, scaled))
        assert norms(np.subtract(*units)).max() <= 2e-3
    if case.promises("L", num_tasks):
        parts = [
            first_updates(case, problems.scaled(factors)).directions
            for factors in (one, other, one + other)
        ]
        error = norms(parts[0] + parts[1] - parts[2])
        assert (error <= 1e-4 * (norms(parts[0]) + norms(parts[1]))).all()
    if case.promises("N", num_tasks):
        assert conflicts(problems.gradients, found).max() <= 1e-4
        problems.gradients[..., 1:] = 0  # dependent, and mostly stationary
        dependent = first_updates(case, problems)
        assert conflicts(problems.gradients, dependent).max() <= 1e-4


@gramian_cases
def test_a_single_task_goes_along_its_gradient(case):
    problems = random_problems(1)
    found = first_updates(case, problems)
    for d, (gradient,) in zip(found.directions, problems.gradients, strict=True):
        cosine = d @ gradient / norms(d) / norms(gradient)
        assert cosine == pytest.approx(1, abs=1e-5)
    if case.name == "db_mtl":
        np.testing.assert_allclose(found.weights, 1 / problems.losses, rtol=1e-5)
    elif case.name not in {"fairgrad", "nash_mtl", "cagrad", "normalized"}:
        np.testing.assert_allclose(found.weights, 1, rtol=1e-5)


@few_cases
def test_hundred_steps_compile_once_and_equal_a_batch(case):
    problems = random_problems(NUM_TASKS)
    update, state = jitted_step(CASES.index(case)), init(case)
    first, tolerance = types(state), 1e-2 if case.needs_second_batch else 1e-4
    expected = first_updates(case, problems)
    for i in range(5):
        problem = (np.float32(each[i]) for each in problems)
        alone = update(*problem, init(case))
        for one, batched in zip(alone, expected, strict=False):
            np.testing.assert_allclose(one, batched[i], tolerance, tolerance / 10)
    for i in range(100):
        problem = (np.float32(each[i % len(each)]) for each in problems)
        direction, weights, state = update(*problem, state)
        assert types(state) == first
    assert_finite((direction, weights, state))
    assert update._cache_size() == 1


@few_cases
@pytest.mark.parametrize("what", ["gradients", "losses"])
def test_what_is_not_finite_changes_nothing(case, what):
    """Uniform weights first, then the last good ones; the state says so."""
    gradients = random_problems(NUM_TASKS, count=1).gradients[0].astype(np.float32)
    good = gradients, np.float32([1.0, 2.0, 0.5])
    update, uniform = jitted_step(CASES.index(case)), np.full(NUM_TASKS, 1 / NUM_TASKS)
    needed = {"gramian": "gradients", "losses": case.entry.needs}
    needed = needed.get(case.entry.family, ())
    if case.variant in {"now and then", "geometric_mean"}:
        needed = ()  # it looks at the Gramian later, or never
    for bad in (np.nan, np.inf):
        broken = [each.copy() for each in good]
        broken[what == "losses"][1] = bad
        _, first, _ = update(*broken, init(case))
        _, last, state = update(*good, init(case))
        _, found, after = update(*broken, state)
        assert_finite((first, found, after))
        assert_finite(update(*good, after))
        if what not in needed:
            continue
        np.testing.assert_allclose(first, uniform, rtol=1e-6)
        if "gradnorm" not in str(case):  # its weights are a step late
            np.testing.assert_allclose(found, last, rtol=1e-6)
        for info in filter(is_info, jax.tree.leaves(after, is_leaf=is_info)):
            assert info.finite == info.converged == (what == "losses")


def is_info(node):
    return isinstance(node, samo_jax.SolveInfo)


@pytest.mark.parametrize(
    "name", [*("log_losses", "grouped"), *(case.name for case in CASES if solves(case))]
)
def test_states_keep_what_the_last_solve_says(name):
    (case,) = (case for case in CASES if str(case) == name)
    (info,) = filter(is_info, jax.tree.leaves(init(case), is_leaf=is_info))
    assert np.all(info.converged)


@aggregators
def test_without_shared_leaves(case):
    """Of whom heads are all there is."""
    combiner = case.make(NUM_TASKS)
    state = init_combiner(combiner, {"head": None}, NUM_TASKS)
    grads = {"head": None}
    second = {"sample_grads": [grads]} if case.needs_second_batch else {}
    direction, weights, _ = combiner_update(combiner)(
        grads, state, losses=jnp.ones(NUM_TASKS), **second
    )
    assert direction == grads
    assert_finite(weights)


@quick_cases
@pytest.mark.usefixtures("strict")
def test_types_are_a_fixed_point(case):
    """Also under strict promotion, in half precision, and in float64."""
    for x64, dtype in ((False, "float32"), (False, "bfloat16"), (True, "float64")):
        with jax.enable_x64(x64):
            combiner = case.make(NUM_TASKS)
            params = {"x": jnp.zeros(WIDTH, dtype)}
            grads = {"x": jnp.ones((NUM_TASKS, WIDTH), dtype)}
            second = {"sample_grads": [grads]} if case.needs_second_batch else {}
            state = init_combiner(combiner, params, NUM_TASKS)
            direction, weights, new = jax.eval_shape(
                functools.partial(
                    combiner_update(combiner), losses=jnp.ones(NUM_TASKS), **second
                ),
                grads,
                state,
                present=jnp.ones(NUM_TASKS, bool),
            )
            assert types(new) == types(state)
            assert types(direction) == types(params)
            assert weights.shape == (NUM_TASKS,)
            assert weights.dtype == jnp.result_type(float)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_repr_is_the_call(case):
    combiner = case.make(NUM_TASKS)
    assert repr(combiner).startswith(f"samo_jax.{case.name}(")
    if "key" not in repr(combiner) and "array" not in repr(combiner):
        assert repr(eval(repr(combiner), {"samo_jax": samo_jax})) == repr(combiner)


def functions_of_gramians():
    """Every public `<name>_weights`, as a function of the Gramian alone."""
    arguments = {
        "pcgrad": {"key": KEY},
        "gradvac": {"key": KEY, "targets": np.zeros((3, 3))},
        "krum": {"num_byzantine": 0},
        "db_mtl": {"losses": np.ones(3)},
    }
    names = [name for name in COMBINERS if hasattr(samo_jax, f"{name}_weights")]
    assert len(names) > 10
    return {
        name: functools.partial(
            getattr(samo_jax, f"{name}_weights"), **arguments.get(name, {})
        )
        for name in names
    }


@pytest.mark.parametrize("shape", mostly_slow([(3,), (2, 3), (2, 2, 2)], but=1))
def test_gramians_must_be_square(shape):
    for weights in functions_of_gramians().values():
        with pytest.raises(ValueError, match=r"^`gramian` must have shape \(K, K\)"):
            weights(np.ones(shape))


def test_gramians_may_be_lists_of_numbers():
    gramian = [[2.0, -1.0, 0.5], [-1.0, 3.0, 0.0], [0.5, 0.0, 1.0]]
    for weights in functions_of_gramians().values():
        shapes = jax.eval_shape(weights, gramian)
        assert shapes == jax.eval_shape(weights, np.array(gramian))
