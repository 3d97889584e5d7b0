"""Full-gradient combiners against NumPy recurrences, and in `multitask`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import samo_jax

from three_heads import (
    NUM_TASKS,
    assert_finite,
)
from tiers import mostly_slow

COMBINERS = {
    "graddrop": samo_jax.graddrop(0),
    "trimmed_mean": samo_jax.trimmed_mean(1),
    "moco": samo_jax.moco(),
    "excess_mtl": samo_jax.excess_mtl(0.5),
    "db_mtl_momentum": samo_jax.db_mtl_momentum(),
}
all_combiners = pytest.mark.parametrize("combiner", COMBINERS.values(), ids=COMBINERS)
PARAMS = {"a": jnp.zeros((2, 3)), "head": None, "b": jnp.zeros(())}


def sequences(steps, num_tasks=NUM_TASKS, seed=0):
    """Gradients, shape (steps, K, 7), and losses, shape (steps, K)."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(steps, num_tasks, 7)), np.exp(
        rng.normal(size=(steps, num_tasks))
    )


def as_tree(grads):
    grads = jnp.asarray(grads, float)
    return {
        "a": grads[..., :6].reshape(*grads.shape[:-1], 2, 3),
        "head": None,
        "b": grads[..., 6],
    }


def as_rows(tree):
    leading = tree["b"].shape
    return np.concatenate(
        [np.reshape(tree["a"], (*leading, 6)), np.asarray(tree["b"])[..., None]], -1
    )


def run(combiner, grads, losses):
    """Directions (steps, 7), weights (steps, K) and the last state, by one scan."""

    def step(state, inputs):
        task_grads, losses = inputs
        *outputs, state = combiner.update(task_grads, state, losses=losses)
        return state, outputs

    state = combiner.init(PARAMS, losses.shape[1])
    inputs = as_tree(grads), jnp.asarray(losses, float)
    state, (directions, weights) = jax.jit(lambda s: lax.scan(step, s, inputs))(state)
    return as_rows(directions), np.asarray(weights), state


def project(y):
    """The simplex projection, by bisection on the threshold."""
    low, high = y.min() - 1, y.max()
    for _ in range(100):
        middle = (low + high) / 2
        if np.maximum(y - middle, 0).sum() > 1:
            low = middle
        else:
            high = middle
    return np.maximum(y - low, 0)


@pytest.mark.parametrize("normalize", mostly_slow([True, False], but={True}))
def test_moco_recurrence(normalize):
    grads, losses = sequences(8)
    directions, weights, _ = run(
        samo_jax.moco(0.6, 0.3, 0.1, decay=0.7, normalize=normalize), grads, losses
    )
    tracked, w = np.zeros((NUM_TASKS, 7)), np.full(NUM_TASKS, 1 / NUM_TASKS)
    for t in range(8):
        g = grads[t]
        if normalize:
            g = g / np.linalg.norm(g, axis=1, keepdims=True) * losses[t][:, None]
        rate = (t + 1) ** -0.7
        tracked = tracked - 0.6 * rate * (tracked - g)
        w = project(w - 0.3 * rate * (tracked @ tracked.T + 0.1 * np.eye(3)) @ w)
        np.testing.assert_allclose(weights[t], w, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(directions[t], w @ tracked, rtol=1e-4, atol=1e-5)
    assert np.any(weights == 0) or np.ptp(weights[-1]) > 0.05


@pytest.mark.slow
def test_moco_tends_to_the_min_norm_point():
    grads, losses = sequences(1)
    grads, losses = np.repeat(grads, 300, 0), np.repeat(losses, 300, 0)
    directions, weights, _ = run(
        samo_jax.moco(1.0, 0.05, decay=0.0, normalize=False), grads, losses
    )
    exact = samo_jax.mgda_weights(jnp.asarray(grads[0] @ grads[0].T))
    np.testing.assert_allclose(weights[-1], exact, atol=1e-3)
    np.testing.assert_allclose(directions[-1], exact @ grads[0], atol=1e-2)


def test_excess_mtl_recurrence():
    grads, losses = sequences(8)
    directions, weights, _ = run(samo_jax.excess_mtl(0.7), grads, losses)
    squares, w, baseline = np.zeros((NUM_TASKS, 7)), np.ones(NUM_TASKS), None
    for t in range(8):
        squares = squares + grads[t] ** 2
        risks = np.sum(grads[t] ** 2 / np.sqrt(squares), axis=1)
        if baseline is None:
            baseline = risks
        else:
            w = w * np.exp(0.7 * risks / baseline)
        w = w / w.sum()
        np.testing.assert_allclose(weights[t], w, rtol=1e-4)
        np.testing.assert_allclose(directions[t], w @ grads[t], rtol=1e-4, atol=1e-5)


def test_excess_mtl_waits_for_a_tasks_first_gradient():
    grads, losses = sequences(4)
    grads[:2, 0] = 0
    _, weights, state = run(samo_jax.excess_mtl(0.7), grads, losses)
    assert_finite((weights, state))
    assert np.all(state.baseline > 0)
    assert np.all(weights[2, 0] < weights[2, 1:])


@pytest.mark.parametrize(("decay", "power"), [(0.9, 0.0), (0.8, 0.5), (0.0, 0.0)])
def test_db_mtl_recurrence(decay, power):
    grads, losses = sequences(8)
    directions, weights, _ = run(
        samo_jax.db_mtl_momentum(decay, power=power), grads, losses
    )
    average = np.zeros((NUM_TASKS, 7))
    for t in range(8):
        g = grads[t] / losses[t][:, None]
        average = g + decay / (t + 1) ** power * (average - g)
        norms = np.linalg.norm(average, axis=1)
        w = norms.max() / norms / NUM_TASKS
        np.testing.assert_allclose(weights[t], w, rtol=1e-4)
        np.testing.assert_allclose(directions[t], w @ average, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trim", [0, 1, 2])
def test_trimmed_mean(trim):
    grads, losses = sequences(2, num_tasks=5)
    directions, weights, _ = run(samo_jax.trimmed_mean(trim), grads, losses)
    expected = np.sort(grads, axis=1)[:, trim : 5 - trim].mean(axis=1)
    np.testing.assert_allclose(directions, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weights, 0.2)
    if trim == 2:
        np.testing.assert_allclose(directions, np.median(grads, axis=1), rtol=1e-5)


@pytest.mark.parametrize("leak", mostly_slow([0.0, 0.3, [0.0, 0.5, 1.0], 1.0], but=2))
def test_graddrop_keeps_one_sign_and_has_the_published_mean(leak):
    grads, losses = sequences(1)
    steps = 4000
    directions, weights, _ = run(
        samo_jax.graddrop(0, leak),
        np.repeat(grads, steps, 0),
        np.repeat(losses, steps, 0),
    )
    directions = directions.astype(float)
    g, leaks = grads[0], np.broadcast_to(leak, 3)[:, None]
    positive, negative = (
        np.where(kept, g, leaks * g).mean(axis=0) for kept in (g > 0, g < 0)
    )
    near = np.minimum(np.abs(directions - positive), np.abs(directions - negative))
    np.testing.assert_allclose(near, 0, atol=1e-5)
    share = (1 + g.sum(axis=0) / np.abs(g).sum(axis=0)) / 2
    error = np.abs(positive - negative) * np.sqrt(share * (1 - share) / steps)
    average = share * positive + (1 - share) * negative
    assert np.all(np.abs(directions.mean(axis=0) - average) <= 5 * error + 1e-5)
    np.testing.assert_allclose(weights, 1 / NUM_TASKS)


def test_graddrop_draws_anew_each_step_and_leaf_and_repeats_with_the_key():
    pair = jnp.stack([jnp.ones(200), -jnp.ones(200)])
    task_grads, losses = {"x": pair, "y": pair}, jnp.ones(2)

    def two_steps(key):
        combiner = samo_jax.graddrop(key)
        state = combiner.init(task_grads, 2)
        first, _, state = combiner.update(task_grads, state, losses=losses)
        return first, combiner.update(task_grads, state, losses=losses)[0]

    first, second = two_steps(1)
    assert jnp.any(first["x"] != first["y"])
    assert jnp.any(first["x"] != second["x"])
    chex.assert_trees_all_equal(two_steps(jax.random.key(1)), (first, second))
    agreeing = {"x": jnp.abs(pair)}
    combiner = samo_jax.graddrop(1)
    direction = combiner.update(agreeing, combiner.init({}, 2), losses=losses)[0]
    np.testing.assert_array_equal(direction["x"], 1)


@pytest.mark.slow
@all_combiners
def test_permutation_equivariance(combiner):
    grads, losses = sequences(6)
    order = np.array([2, 0, 1])
    directions, weights, _ = run(combiner, grads, losses)
    permuted = run(combiner, grads[:, order], losses[:, order])
    np.testing.assert_allclose(permuted[0], directions, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(permuted[1], weights[:, order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", mostly_slow([1e-10, 1e10], but=1))
@pytest.mark.parametrize(
    ("name", "degree"),
    [
        ("graddrop", 1),
        ("trimmed_mean", 1),
        ("moco", 0),
        ("excess_mtl", 1),
        ("db_mtl_momentum", 1),
    ],
)
def test_scale_of_the_gradients(name, degree, scale):
    grads, losses = sequences(5)
    directions, weights, _ = run(COMBINERS[name], grads, losses)
    scaled = run(COMBINERS[name], grads * scale, losses)
    np.testing.assert_allclose(scaled[1], weights, rtol=1e-3)
    np.testing.assert_allclose(
        scaled[0] / scale**degree, directions, rtol=1e-3, atol=1e-5
    )


def test_db_mtl_does_not_see_the_scale_of_a_loss():
    grads, losses = sequences(5)
    row = np.array([1e-6, 1.0, 1e6])
    scaled = run(COMBINERS["db_mtl_momentum"], grads * row[:, None], losses * row)
    directions = run(COMBINERS["db_mtl_momentum"], grads, losses)[0]
    np.testing.assert_allclose(scaled[0], directions, rtol=1e-4, atol=1e-5)


@all_combiners
def test_zero_gradients(combiner):
    grads, losses = sequences(4)
    directions, weights, state = run(combiner, 0 * grads, losses)
    np.testing.assert_array_equal(directions, 0)
    assert_finite((weights, state))
    grads[:, 0] = 0
    assert_finite(run(combiner, grads, losses))


@pytest.mark.parametrize("name", ["moco", "excess_mtl", "db_mtl_momentum"])
@pytest.mark.parametrize("bad", mostly_slow([np.nan, np.inf], but=1))
def test_gradients_that_are_not_finite_leave_the_state(name, bad):
    grads, losses = sequences(3)
    spoilt = grads.copy()
    spoilt[1, 0, 2] = bad
    directions, weights, state = run(COMBINERS[name], spoilt, losses)
    clean = run(COMBINERS[name], grads[[0, 2]], losses[[0, 2]])
    chex.assert_trees_all_close(state, clean[2], rtol=1e-5)
    np.testing.assert_array_equal(weights[1], weights[0])
    np.testing.assert_allclose(directions[2], clean[0][1], rtol=1e-5)
    if name != "excess_mtl":
        np.testing.assert_array_equal(directions[1], directions[0])


@pytest.mark.parametrize("bad", mostly_slow([np.nan, np.inf, 0.0, -1.0], but={-1.0}))
def test_db_mtl_needs_positive_losses(bad):
    grads, losses = sequences(3)
    losses[0, 1] = losses[2, 2] = bad
    directions, _, state = run(COMBINERS["db_mtl_momentum"], grads, losses)
    assert_finite((directions, state))
    assert state.step == 1
    np.testing.assert_array_equal(directions[0], 0)
    np.testing.assert_array_equal(directions[2], directions[1])
