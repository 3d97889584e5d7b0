"""Tasks that come and go: every combiner goes on as if absent ones did not exist."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import samo_jax
from samo_jax._combiners._types import combiner_update, init_combiner

import combiners
from tiers import mostly_slow

K, STEPS, LEARNING_RATE = 3, 1000, 0.02
# What changes faster than by default, or weighs losses below one, too.
SETTINGS = {
    "cosmos": {"lam": 0.1},
    "dwa": {"window": 10},
    "famo": {"offset": -1.0},
    "pbi": {"theta": 0.1},
    "sdmgrad": {"learning_rate": 0.1},
    "stch": {"mu": 0.3},
    "uncertainty": {"offset": -1.0},
}
CASES = {
    str(case): case._replace(arguments=SETTINGS.get(case.name, {}) | case.arguments)
    for case in combiners.CASES
}
all_cases = pytest.mark.parametrize("name", CASES)
few_cases = pytest.mark.parametrize(
    "name", mostly_slow(CASES, but=map(str, combiners.REPRESENTATIVES))
)
# What K tasks draw of a key is not what fewer draw: equal in law alone.
DRAWN = {"random_weights"}
# Weights that tend to what the losses and gradients say, wherever they come from.
LEARNT = [
    "smoothed-geometric_mean",
    "log_losses-gradnorm",
    "excess_mtl",
    "db_mtl_momentum",
    "gradnorm",
    "uncertainty",
    "imtl_l",
    "dwa",
    "famo",
]
# State of the last update, which no task has to wait for.
RECORDS = (".method_state.previous_losses", ".weights[", ".solved_for")


def fixed_subsets():
    """The same tasks at all steps: every one but the empty set."""
    subsets = list(itertools.product([False, True], repeat=K))[1:]
    return {
        f"{np.flatnonzero(subset)} alone": np.tile(subset, (STEPS, 1))
        for subset in subsets
    }


def comings_and_goings():
    """Which tasks are there: shape (STEPS, K)."""
    draws = np.random.default_rng(0).uniform(size=(2, STEPS, K))
    step, first = np.arange(STEPS)[:, None], np.arange(K) == 0
    return {
        "a tenth missing": draws[0] < 0.9,
        "half missing": draws[1] < 0.5,
        "one missing at first": ~(first & (step == 0)),
        "one missing now and then": ~(first & (step % 25 == 24)),
        "one missing after 50 steps": ~(first & (step >= 50)),
    }


FIXED, CHANGING = fixed_subsets(), comings_and_goings()
SCENARIOS = FIXED | CHANGING
ALL = "[0 1 2] alone"


class Problem(NamedTuple):
    """Quadratic losses of different scales, whose minima are apart."""

    scales: np.ndarray
    curvatures: np.ndarray
    minima: np.ndarray


def problem_of(tasks):
    rng = np.random.default_rng(1)
    return Problem(
        np.array([0.05, 1.0, 5.0])[tasks],
        rng.uniform(0.5, 2, size=(K, 4))[tasks],
        rng.normal(size=(K, 4))[tasks],
    )


def losses_on(problem, noise, present, is_nan):
    """Of an absent task: NaN, or a thousand times too much."""

    def loss_fn(params):
        point = jnp.concatenate([params["first"], params["last"]])
        squares = problem.curvatures * (point - problem.minima - noise) ** 2
        losses = problem.scales * (0.1 + jnp.sum(squares, axis=1) / 2)
        wrong = jnp.where(is_nan, jnp.nan, 1e3 * losses)
        return list(jnp.where(present, losses, wrong))

    return loss_fn


class Trace(NamedTuple):
    """Of every step.

    Attributes:
        direction: of the shared parameters, all there are.
        length: its norm.
        weights: the combiner's.
        waits: whether what the state holds of absent tasks has not changed.
        position: the parameters after it.
    """

    direction: jax.Array
    length: jax.Array
    weights: jax.Array
    waits: jax.Array
    position: jax.Array


def train(name, tasks, steps, present, noise, adam, is_nan):
    """One combiner's steps, by SGD or Adam."""
    problem, case = problem_of(tasks), CASES[name]
    tx = samo_jax.multitask(case.make(tasks), num_tasks=len(tasks))
    optimizers = optax.sgd(LEARNING_RATE), optax.adam(LEARNING_RATE)

    def step(carry, now):
        params, state, memories = carry
        present, noise = now
        loss_fns = [losses_on(problem, each, present, is_nan) for each in noise]
        second = {"sample_loss_fns": loss_fns[1:]} if case.needs_second_batch else {}
        direction, new = tx.update(
            params, state, params, loss_fn=loss_fns[0], task_mask=present, **second
        )
        (by_sgd, sgd), (by_adam, moments) = (
            optimizer.update(direction, memory)
            for optimizer, memory in zip(optimizers, memories, strict=True)
        )
        change = jax.tree.map(functools.partial(jnp.where, adam), by_adam, by_sgd)
        params = optax.apply_updates(params, change)
        trace = Trace(
            direction=flat(direction),
            length=jnp.linalg.norm(flat(direction)),
            weights=new.weights,
            waits=waits(state.combiner_state, new.combiner_state, present),
            position=flat(params),
        )
        return (params, new, (sgd, moments)), trace

    params = {"first": jnp.full(2, 3.0), "last": jnp.full(2, -3.0)}
    memories = tuple(optimizer.init(params) for optimizer in optimizers)
    start = params, tx.init(params), memories
    return lax.scan(step, start, (present[:steps], noise[:steps]))[1]


def flat(params):
    return jnp.concatenate([params["first"], params["last"]])


def waits(before, after, present):
    """Whether only present tasks' entries have changed, on all axes of K."""

    def unchanged(path, old, new):
        axes = [axis for axis, size in enumerate(old.shape) if size == len(present)]
        if not axes or jax.tree_util.keystr(path).startswith(RECORDS):
            return jnp.array(True)
        same = old == new
        for axis in axes:
            others = [other for other in range(old.ndim) if other != axis]
            same |= jnp.expand_dims(present, others)
        return jnp.all(same)

    found = jax.tree_util.tree_map_with_path(unchanged, before, after)
    return jnp.all(jnp.array([True, *jax.tree.leaves(found)]))


def noises(tasks):
    rng = np.random.default_rng(2)
    return jnp.float32(0.3 * rng.normal(size=(STEPS, 2, K, 4))[:, :, tasks])


@functools.cache
def traces(name):
    """By optimiser and scenario; where a task is absent its loss is NaN, or huge."""
    tasks, present = np.arange(K), jnp.asarray(list(SCENARIOS.values()))
    run = functools.partial(train, name, tasks, STEPS)
    over_scenarios = jax.vmap(run, (0, None, None, 0))
    over_both = jax.jit(jax.vmap(over_scenarios, (None, None, 0, None)))
    is_nan = jnp.arange(len(present)) % 2 == 0
    is_adam = jnp.array([False, True])
    found = jax.device_get(over_both(present, noises(tasks), is_adam, is_nan))
    return {
        (optimizer, scenario): Trace(*(leaf[i, j] for leaf in found))
        for i, optimizer in enumerate(("SGD", "Adam"))
        for j, scenario in enumerate(SCENARIOS)
    }


@functools.cache
def jitted_update(name, tasks):
    """The combiner of some tasks: (direction, weights, state) after a step."""
    case = CASES[name]
    update = combiner_update(case.make(list(tasks)))

    def run(gradients, losses, state, present):
        gradients = jnp.where(present[:, None], gradients, 0)
        second = {"sample_grads": [2 * gradients]} if case.needs_second_batch else {}
        losses = jnp.where(present, losses, jnp.nan)
        return update(gradients, state, losses=losses, present=present, **second)

    return jax.jit(run)


def steps_of(name, tasks, present, state=None):
    """Five steps of K tasks' gradients, of which some are there."""
    rng = np.random.default_rng(0)
    if state is None:
        combiner = CASES[name].make(list(tasks))
        state = init_combiner(combiner, jnp.zeros(4), len(tasks))
    for _ in range(5):
        gradients, losses = rng.normal(size=(K, 4)), rng.uniform(0.5, 2, size=K)
        given = (np.float32(each)[list(tasks)] for each in (gradients, losses))
        direction, weights, state = jitted_update(name, tasks)(*given, state, present)
        yield direction, weights, state


ALL_TASKS, OTHERS = (0, 1, 2), (0, 1)


@few_cases
def test_steps_are_those_of_the_combiner_of_the_present_tasks(name):
    present = np.array([True, True, False])
    found = steps_of(name, ALL_TASKS, present)
    expected = steps_of(name, OTHERS, np.ones(2, bool))
    for (direction, weights, _), (wanted, others, _) in zip(
        found, expected, strict=True
    ):
        assert weights[2] == 0
        if name not in DRAWN:
            np.testing.assert_allclose(direction, wanted, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(weights[:2], others, rtol=1e-3, atol=1e-5)


@few_cases
def test_what_is_remembered_of_absent_tasks_waits(name):
    *_, (_, _, before) = steps_of(name, ALL_TASKS, np.ones(K, bool))
    present = np.array([True, False, True])
    for _, weights, after in steps_of(name, ALL_TASKS, present, before):
        assert waits(before, after, present)
        assert weights[1] == 0
        before = after


@pytest.mark.slow
@pytest.mark.parametrize("others", [[2], [0, 1]], ids=str)
@pytest.mark.parametrize("name", [name for name in CASES if name not in DRAWN])
def test_training_is_that_of_the_combiner_of_the_present_tasks(name, others):
    run = jax.jit(functools.partial(train, name, np.array(others), 20))
    expected = run(jnp.ones((20, len(others)), bool), noises(others), False, False)
    trace = traces(name)["SGD", f"{np.array(others)} alone"]
    np.testing.assert_allclose(
        trace.direction[:20], expected.direction, rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(
        trace.weights[:20, others], expected.weights, rtol=1e-3, atol=1e-5
    )


@pytest.mark.slow
@all_cases
def test_absent_tasks_wait_for_a_thousand_steps(name):
    for (_, scenario), trace in traces(name).items():
        assert trace.waits.all(), scenario
        assert not trace.weights[~SCENARIOS[scenario]].any(), scenario


@pytest.mark.slow
@all_cases
def test_steps_are_no_longer_than_with_some_tasks_alone(name):
    for optimizer in ("SGD", "Adam"):
        of = {
            scenario: traces(name)[optimizer, scenario].length for scenario in SCENARIOS
        }
        longest = max(of[scenario].max() for scenario in FIXED)
        for scenario in CHANGING:
            assert of[scenario].max() < 1.5 * longest, (optimizer, scenario)


@pytest.mark.slow
@all_cases
def test_a_thousand_steps_come_close_to_the_minima(name):
    """Within 1.6 times their radius around their mean, or as far as with all tasks."""
    minima = problem_of(np.arange(K)).minima
    centre = np.mean(minima, axis=0)
    radius = 1.6 * np.max(np.linalg.norm(minima - centre, axis=1))

    def distance(key):
        last = np.mean(traces(name)[key].position[-200:], axis=0)
        return np.linalg.norm(last - centre)

    for optimizer, scenario in traces(name):
        assert np.isfinite(traces(name)[optimizer, scenario].position).all(), scenario
        if scenario in CHANGING:
            farthest = max(radius, 1.1 * distance((optimizer, ALL)))
            assert distance((optimizer, scenario)) < farthest, (optimizer, scenario)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNT)
@pytest.mark.parametrize("scenario", ["at first", "now and then"])
def test_a_task_missed_for_a_step_is_weighed_as_before(name, scenario):
    scenario = f"one missing {scenario}"
    for optimizer in ("SGD", "Adam"):
        clean = traces(name)[optimizer, ALL].weights[-200:]
        late = traces(name)[optimizer, scenario].weights[-200:]
        there = SCENARIOS[scenario][-200:].all(axis=1)
        found, expected = late[there].mean(axis=0), clean[there].mean(axis=0)
        assert np.abs(found - expected).max() < 0.1 * clean.max(), optimizer


@pytest.mark.slow
def test_random_weights_are_the_softmax_of_the_present_tasks():
    drawn = traces("random_weights")["SGD", ALL].weights
    for scenario, present in FIXED.items():
        there = drawn * present
        expected = there / there.sum(axis=1, keepdims=True)
        found = traces("random_weights")["SGD", scenario].weights
        np.testing.assert_allclose(found, expected, rtol=1e-4)
