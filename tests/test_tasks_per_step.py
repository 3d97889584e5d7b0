"""`tasks_per_step`: some tasks of each step, drawn, as if the others were absent."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samo_jax

from sharpness import PERTURBATIONS
from tiers import mostly_slow

# As many parameters as tasks: fewer leave the min-norm point's weights arbitrary.
TARGETS = jnp.array(
    [
        [1.0, 2.0, 0.4, -1.0],
        [-1.0, 0.5, 1.5, 0.2],
        [0.3, -2.0, -0.6, 1.2],
        [2.0, 2.0, 1.0, 0.7],
    ]
)
W = jnp.array([0.5, -0.7, 0.2, 0.9])
LOOPS = [True, False, 2]


def loss(w, target):
    return jnp.sum((w - target) ** 2 * (1 + w**2))


def by_task(targets=TARGETS, unroll=None):
    return samo_jax.by_task(loss, targets, unroll=unroll)


def plain(targets=TARGETS, unroll=None):
    del unroll
    return lambda w: [loss(w, target) for target in targets]


def trained(tx, loss_fn, steps=3):
    @jax.jit
    def step(w, state):
        grads = samo_jax.mean_value_and_grad(loss_fn)(w)[1]
        updates, state = tx.update(grads, state, w, loss_fn=loss_fn)
        return w - 0.01 * updates, state

    w = W.astype(jnp.result_type(float))
    state = tx.init(w)
    for _ in range(steps):
        w, state = step(w, state)
    return w, state._replace(key=None)


def make(count, combiner=None, perturbation=None, **kwargs):
    combiner = samo_jax.mgda() if combiner is None else combiner
    return samo_jax.multitask(
        combiner, perturbation, num_tasks=4, key=0, tasks_per_step=count, **kwargs
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("unroll", mostly_slow(LOOPS, but={False}))
@pytest.mark.parametrize("loss_fn", mostly_slow([by_task, plain], but={by_task}))
@pytest.mark.parametrize("name", mostly_slow([None, "joint", "memory"], but={"memory"}))
def test_all_tasks_are_those_of_a_step_without_draws(name, loss_fn, unroll):
    perturbation = PERTURBATIONS[name]() if name else None
    targets = TARGETS.astype("float64")

    def run(count):
        tx = make(count, None, perturbation, unroll=unroll)
        w, state = trained(tx, loss_fn(targets))
        return w, state.weights, state.perturbation_state, state.skipped

    chex.assert_trees_all_close(run(4), run(None), rtol=1e-8, atol=1e-10)


def drawn_weights(tx, loss_fn, steps):
    """The weights of many steps at one point, shape (steps, K), and the last state."""

    def step(state, _):
        updates, state = tx.update(W, state, W, loss_fn=loss_fn)
        return state, (state.weights, updates)

    return jax.jit(lambda s: jax.lax.scan(step, s, None, steps))(tx.init(W))


@pytest.mark.parametrize("unroll", mostly_slow(LOOPS, but={True, False}))
def test_draws_are_uniform_and_weights_those_of_the_drawn(unroll):
    steps, count = 2000, 2
    tx = make(count, samo_jax.mean(), unroll=unroll)
    state, (weights, updates) = drawn_weights(tx, by_task(), steps)
    np.testing.assert_array_equal(jnp.sum(weights > 0, axis=1), count)
    np.testing.assert_allclose(weights[weights > 0], 1 / count)
    # Five standard deviations of a frequency.
    margin = 5 * np.sqrt(0.25 / steps)
    np.testing.assert_allclose(jnp.mean(weights > 0, axis=0), count / 4, atol=margin)
    pairs = jnp.mean((weights[:, :, None] * weights[:, None]) > 0, axis=0)
    np.testing.assert_allclose(pairs[np.triu_indices(4, 1)], 1 / 6, atol=margin)
    gradients = samo_jax.task_gradients(by_task(), W)
    np.testing.assert_allclose(updates, weights @ gradients, rtol=1e-5, atol=1e-5)
    assert not jnp.any(state.skipped)


@pytest.mark.parametrize("unroll", mostly_slow(LOOPS, but={False}))
@pytest.mark.parametrize("loss_fn", [by_task, plain])
def test_an_undrawn_task_is_not_seen(loss_fn, unroll):
    broken = TARGETS.at[2].set(jnp.nan)
    tx = make(2, samo_jax.mean(), unroll=unroll)
    state, (weights, updates) = drawn_weights(tx, loss_fn(broken), 40)
    _, (whole, expected) = drawn_weights(tx, loss_fn(), 40)
    without = whole[:, 2] == 0
    assert 5 < jnp.sum(without) < 35
    np.testing.assert_allclose(updates[without], expected[without], rtol=1e-5)
    np.testing.assert_array_equal(weights[:, 2], 0)
    assert state.skipped.tolist() == [0, 0, 40 - jnp.sum(without), 0]


@pytest.mark.parametrize(
    "perturbation", mostly_slow([None, samo_jax.global_sam()], but=1)
)
@pytest.mark.parametrize("unroll", [True, False])
def test_only_the_drawn_tasks_are_passed_through(unroll, perturbation):
    runs = []

    def counting(w, i):
        jax.debug.callback(lambda: runs.append(0))
        return loss(w, TARGETS[i])

    tx = make(2, None, perturbation, unroll=unroll)
    loss_fn = samo_jax.by_task(counting, 4)
    step = jax.jit(functools.partial(tx.update, loss_fn=loss_fn))
    state = tx.init(W)
    for _ in range(3):
        _, state = step(W, state, W)
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert len(runs) == 3 * 2


def test_averages_of_undrawn_tasks_wait():
    tx = make(1, samo_jax.db_mtl_momentum())
    _, state = trained(tx, by_task(), steps=1)
    rows = jax.tree.leaves(state.combiner_state)
    moved = [jnp.any(row != 0, axis=-1) for row in rows if row.shape == (4, *W.shape)]
    assert moved
    for row in moved:
        assert jnp.sum(row) == 1


def test_samo_draws_too():
    tx = samo_jax.samo(samo_jax.mean(), num_tasks=4, key=0, tasks_per_step=3)
    _, state = trained(tx, by_task())
    assert jnp.sum(state.weights > 0) == 3
