"""Tasks that come and go: every combiner goes on as if absent ones did not exist."""

import functools
import inspect
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import samo_jax
from samo_jax._combiners._types import combiner_update

from toy import types

K, STEPS, LEARNING_RATE = 3, 1000, 0.02
KEY = jax.random.key(0)
WEIGHTS = np.array([0.5, 0.2, 0.3])

# By name: the combiner of the tasks with the given indices.
COMBINERS = {
    "mean": lambda _: samo_jax.mean(),
    "total": lambda _: samo_jax.total(),
    "constant": lambda tasks: samo_jax.constant(WEIGHTS[tasks]),
    "random_weights": lambda _: samo_jax.random_weights(KEY),
    "mgda": lambda _: samo_jax.mgda(),
    "mgda-l2": lambda _: samo_jax.mgda("l2"),
    "mgda-loss": lambda _: samo_jax.mgda("loss"),
    "mgda-loss+": lambda _: samo_jax.mgda("loss+"),
    "log_losses": lambda _: samo_jax.log_losses(samo_jax.mean()),
    "log_losses-gradnorm": lambda _: samo_jax.log_losses(samo_jax.gradnorm()),
    "smoothed": lambda _: samo_jax.smoothed(samo_jax.geometric_mean()),
    "grouped": lambda _: samo_jax.grouped(samo_jax.smoothed(samo_jax.gradnorm())),
    "fairgrad": lambda _: samo_jax.fairgrad(alpha=2.0),
    "nash_mtl": lambda _: samo_jax.nash_mtl(),
    "nash_mtl-often": lambda _: samo_jax.nash_mtl(update_every=3),
    "cagrad": lambda _: samo_jax.cagrad(c=0.4),
    "pcgrad": lambda _: samo_jax.pcgrad(KEY),
    "gradvac": lambda _: samo_jax.gradvac(KEY),
    "upgrad": lambda _: samo_jax.upgrad(),
    "dualproj": lambda _: samo_jax.dualproj(),
    "imtl_g": lambda _: samo_jax.imtl_g(),
    "aligned_mtl": lambda _: samo_jax.aligned_mtl(),
    "aligned_mtl-median": lambda _: samo_jax.aligned_mtl("median"),
    "aligned_mtl-rmse": lambda _: samo_jax.aligned_mtl("rmse"),
    "conflict_free_inverse": lambda _: samo_jax.conflict_free_inverse(),
    "krum": lambda _: samo_jax.krum(num_byzantine=0),
    "trimmed_mean": lambda _: samo_jax.trimmed_mean(0),
    "graddrop": lambda tasks: samo_jax.graddrop(KEY, leak=WEIGHTS[tasks]),
    "moco": lambda _: samo_jax.moco(),
    "moco-raw": lambda _: samo_jax.moco(decay=0.0, gamma=0.01, normalize=False),
    "modo": lambda _: samo_jax.modo(),
    "sdmgrad": lambda _: samo_jax.sdmgrad(learning_rate=0.1),
    "sdmgrad-preference": lambda tasks: samo_jax.sdmgrad(
        learning_rate=0.1, preference=WEIGHTS[tasks]
    ),
    "excess_mtl": lambda _: samo_jax.excess_mtl(),
    "db_mtl": lambda _: samo_jax.db_mtl(),
    "db_mtl_momentum": lambda _: samo_jax.db_mtl_momentum(),
    "gradnorm": lambda _: samo_jax.gradnorm(),
    "uncertainty": lambda _: samo_jax.uncertainty(offset=-1.0),
    "imtl_l": lambda _: samo_jax.imtl_l(),
    "dwa": lambda _: samo_jax.dwa(window=10),
    "geometric_mean": lambda _: samo_jax.geometric_mean(),
    "stch": lambda tasks: samo_jax.stch(mu=0.3, preference=WEIGHTS[tasks]),
    "pbi": lambda tasks: samo_jax.pbi(theta=0.1, preference=WEIGHTS[tasks]),
    "cosmos": lambda tasks: samo_jax.cosmos(preference=WEIGHTS[tasks], lam=0.1),
    "famo": lambda _: samo_jax.famo(offset=-1.0),
}
# What K tasks draw of a key is not what fewer draw: equal in law alone.
DRAWN = ["random_weights"]
# Weights that tend to what the losses and gradients say, wherever they come from.
LEARNT = [
    "smoothed",
    "log_losses-gradnorm",
    "excess_mtl",
    "db_mtl_momentum",
    "gradnorm",
    "uncertainty",
    "imtl_l",
    "dwa",
    "famo",
]
SECOND_BATCH = ["modo", "sdmgrad", "sdmgrad-preference"]
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
    problem = problem_of(tasks)
    tx = samo_jax.multitask(COMBINERS[name](tasks), num_tasks=len(tasks))
    optimizers = optax.sgd(LEARNING_RATE), optax.adam(LEARNING_RATE)

    def step(carry, now):
        params, state, memories = carry
        present, noise = now
        loss_fns = [losses_on(problem, each, present, is_nan) for each in noise]
        second = {"sample_loss_fns": loss_fns[1:]} if name in SECOND_BATCH else {}
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
    found = over_both(present, noises(tasks), jnp.array([False, True]), is_nan)
    found = jax.device_get(found)
    return {
        (optimizer, scenario): Trace(*(leaf[i, j] for leaf in found))
        for i, optimizer in enumerate(("SGD", "Adam"))
        for j, scenario in enumerate(SCENARIOS)
    }


@pytest.mark.parametrize("others", [[2], [0, 1]], ids=str)
@pytest.mark.parametrize("name", [name for name in COMBINERS if name not in DRAWN])
def test_steps_are_those_of_the_combiner_of_the_present_tasks(name, others):
    present = jnp.ones((20, len(others)), bool)
    run = jax.jit(functools.partial(train, name, np.array(others), 20))
    expected = run(present, noises(others), False, False)
    trace = traces(name)["SGD", f"{np.array(others)} alone"]
    np.testing.assert_allclose(
        trace.direction[:20], expected.direction, rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(
        trace.weights[:20, others], expected.weights, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("name", COMBINERS)
def test_absent_tasks_wait_and_weigh_nothing(name):
    for (_, scenario), trace in traces(name).items():
        assert trace.waits.all(), scenario
        assert not trace.weights[~SCENARIOS[scenario]].any(), scenario


@pytest.mark.parametrize("name", COMBINERS)
def test_steps_are_no_longer_than_with_some_tasks_alone(name):
    for optimizer in ("SGD", "Adam"):
        of = {
            scenario: traces(name)[optimizer, scenario].length for scenario in SCENARIOS
        }
        longest = max(of[scenario].max() for scenario in FIXED)
        for scenario in CHANGING:
            assert of[scenario].max() < 1.5 * longest, (optimizer, scenario)


@pytest.mark.parametrize("name", COMBINERS)
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


@pytest.mark.parametrize("name", COMBINERS)
@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_types_stay_as_they_are(name, dtype):
    """Also under strict promotion, and with float64 under x64."""
    with jax.enable_x64(dtype == "float64"):
        params = {"first": jnp.zeros(2, dtype), "last": jnp.zeros(2, dtype)}
        solver = COMBINERS[name](np.arange(K))
        args = (params, K) if isinstance(solver, samo_jax.Aggregator) else (K,)
        state, update = solver.init(*args), combiner_update(solver)
        grads = jax.tree.map(lambda leaf: jnp.stack([leaf] * K), params)
        second = {"sample_grads": [grads]} if name in SECOND_BATCH else {}
        direction, weights, new = jax.eval_shape(
            functools.partial(update, losses=jnp.ones(K), **second),
            grads,
            state,
            present=jnp.ones(K, bool),
        )
        assert types(new) == types(state)
        assert types(direction) == types(params)
        assert weights.dtype == jnp.result_type(float)


def test_random_weights_are_the_softmax_of_the_present_tasks():
    drawn = traces("random_weights")["SGD", ALL].weights
    for scenario, present in FIXED.items():
        there = drawn * present
        expected = there / there.sum(axis=1, keepdims=True)
        found = traces("random_weights")["SGD", scenario].weights
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_every_combiner_is_in_the_table(monkeypatch):
    called = set()
    factories = {
        name: value
        for name, value in vars(samo_jax).items()
        if inspect.isfunction(value)
        and inspect.signature(value).return_annotation
        in (samo_jax.Weighting, samo_jax.Aggregator)
    }

    def recorded(name, *args, **kwargs):
        called.add(name)
        return factories[name](*args, **kwargs)

    for name in factories:
        monkeypatch.setattr(samo_jax, name, functools.partial(recorded, name))
    for make in COMBINERS.values():
        make(np.arange(K))
    assert called == set(factories)
