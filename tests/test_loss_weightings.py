"""Loss weightings against NumPy recurrences, gradients, and in `multitask`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import samo_jax

from three_heads import (
    NUM_TASKS,
    assert_finite,
)
from tiers import mostly_slow

PREFERENCE = np.array([0.2, 0.5, 0.3])
POINT = np.array([0.1, 0.0, 0.2])
LOGARITHMIC = {
    "geometric_mean": samo_jax.geometric_mean(),
    "uncertainty": samo_jax.uncertainty(),
    "imtl_l": samo_jax.imtl_l(),
    "famo": samo_jax.famo(),
    "log_losses": samo_jax.log_losses(samo_jax.mgda()),
}
WEIGHTINGS = LOGARITHMIC | {
    "stch": samo_jax.stch(0.3, PREFERENCE, POINT),
    "pbi": samo_jax.pbi(2.0, PREFERENCE, POINT),
    "cosmos": samo_jax.cosmos(PREFERENCE, 1.5),
    "dwa": samo_jax.dwa(window=1),
}
SCALARS = {
    "geometric_mean": samo_jax.geometric_mean_loss,
    "stch": lambda losses: samo_jax.stch_loss(
        losses, mu=0.3, preference=PREFERENCE, reference=POINT
    ),
    "pbi": lambda losses: samo_jax.pbi_loss(
        losses, theta=2.0, preference=PREFERENCE, ideal=POINT
    ),
    "cosmos": lambda losses: samo_jax.cosmos_loss(
        losses, preference=PREFERENCE, lam=1.5
    ),
}
PUBLISHED = {
    "geometric_mean": lambda losses: np.prod(losses) ** (1 / len(losses)),
    "stch": lambda losses: (
        0.3 * np.log(np.sum(np.exp(PREFERENCE * (losses - POINT) / 0.3)))
    ),
    "pbi": lambda losses: _pbi(losses - POINT, PREFERENCE / np.linalg.norm(PREFERENCE)),
    "cosmos": lambda losses: (
        PREFERENCE @ losses
        - 1.5
        * (PREFERENCE @ losses)
        / (np.linalg.norm(PREFERENCE) * np.linalg.norm(losses))
    ),
}
all_weightings = pytest.mark.parametrize(
    "name", mostly_slow(WEIGHTINGS, but=WEIGHTINGS.keys() - {"log_losses"})
)
log_weightings = pytest.mark.parametrize(
    "name", mostly_slow(LOGARITHMIC, but={"uncertainty", "famo"})
)


def _pbi(offset, ray):
    along = ray @ offset
    return along + 2 * np.sqrt(np.sum((offset - along * ray) ** 2))


def positive_losses(steps, num_tasks=NUM_TASKS, seed=0):
    rng = np.random.default_rng(seed)
    return np.exp(rng.normal(size=(steps, num_tasks)))


def run(weighting, sequence, gramian=None, **extra_args):
    """Weights of every step, shape (steps, K), and the last state, by one scan."""
    num_tasks = sequence.shape[1]
    gramian = jnp.eye(num_tasks) if gramian is None else gramian

    def step(state, losses):
        weights, state = weighting.update(gramian, state, losses=losses, **extra_args)
        return state, weights

    scan = jax.jit(lambda state: lax.scan(step, state, jnp.asarray(sequence, float)))
    state, weights = scan(weighting.init(num_tasks))
    return np.asarray(weights), state


@pytest.mark.parametrize("name", SCALARS)
def test_weights_are_the_gradient_of_the_scalar(name):
    losses = positive_losses(1)[0]
    weights = run(WEIGHTINGS[name], losses[None])[0][0]
    expected = jax.grad(SCALARS[name])(jnp.asarray(losses, float))
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    np.testing.assert_allclose(SCALARS[name](losses), PUBLISHED[name](losses), 2e-5)
    steps = 1e-6 * np.eye(NUM_TASKS)
    numeric = [
        (PUBLISHED[name](losses + e) - PUBLISHED[name](losses - e)) / 2e-6
        for e in steps
    ]
    np.testing.assert_allclose(weights, numeric, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SCALARS)
def test_scalars_take_dicts_and_give_task_gradients_their_weights(name):
    """Plain gradient descent on the scalar is the weighting on exact gradients."""

    def loss_fn(x):
        return {"a": jnp.sum((x - 1) ** 2) + 1, "b": jnp.sum(x**4) + 1, "c": x[0] + 5}

    x = jnp.array([0.5, -0.7])
    losses = jnp.stack(list(loss_fn(x).values()))
    weights = run(WEIGHTINGS[name], losses[None])[0][0]
    direction = samo_jax.combine(weights, samo_jax.task_gradients(loss_fn, x))
    np.testing.assert_allclose(
        jax.grad(lambda x: SCALARS[name](loss_fn(x)))(x), direction, rtol=1e-5
    )


def adam(slopes_of, rate, steps, num_tasks=NUM_TASKS):
    """Iterates of Adam from zero, before every step; `slopes_of(t, x)` the gradient."""
    x, m, v = np.zeros((3, num_tasks))
    for t in range(steps):
        yield x
        slope = slopes_of(t, x)
        m = 0.9 * m + 0.1 * slope
        v = 0.999 * v + 0.001 * slope**2
        corrected = m / (1 - 0.9 ** (t + 1))
        x = x - rate * corrected / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)


def test_uncertainty_and_imtl_l_recurrences():
    sequence = positive_losses(30)
    # The published losses: sum exp(-s) L / 2 + s / 2, and sum exp(s) L - s.
    kendall = adam(lambda t, s: 0.5 - 0.5 * np.exp(-s) * sequence[t], 0.1, 30)
    liu = adam(lambda t, s: np.exp(s) * sequence[t] - 1, 0.1, 30)
    expected = np.array([np.exp(-s) / NUM_TASKS for s in kendall])
    np.testing.assert_allclose(
        run(samo_jax.uncertainty(0.1), sequence)[0], expected, rtol=2e-5
    )
    expected = np.array([np.exp(s) / NUM_TASKS for s in liu])
    np.testing.assert_allclose(
        run(samo_jax.imtl_l(0.1), sequence)[0], expected, rtol=2e-5
    )


@pytest.mark.parametrize("loss_fn", ["uncertainty_loss", "imtl_l_loss"])
def test_learned_scales_as_parameters_of_the_model(loss_fn):
    loss_fn, losses = getattr(samo_jax, loss_fn), positive_losses(1)[0]
    optimum = np.log(losses) * (1 if loss_fn is samo_jax.uncertainty_loss else -1)
    weights, slope = jax.grad(loss_fn, (0, 1))(jnp.asarray(losses), optimum)
    np.testing.assert_allclose(weights, 1 / (NUM_TASKS * losses), rtol=1e-5)
    np.testing.assert_allclose(slope, 0, atol=1e-6)


def test_learning_rates_may_be_schedules():
    sequence = positive_losses(5)
    schedule = optax.constant_schedule(0.1)
    for method in (samo_jax.uncertainty, samo_jax.famo):
        np.testing.assert_array_equal(
            run(method(schedule), sequence)[0], run(method(0.1), sequence)[0]
        )


def famo_weights(sequence, after, rate, decay):
    """The algorithm as published, `after[t]` the losses after step t."""

    def slope(t, xi):
        z = np.exp(xi) / np.sum(np.exp(xi))
        delta = np.log(sequence[t]) - np.log(after[t])
        return z * (delta - z @ delta) + decay * xi

    for losses, xi in zip(
        sequence, adam(slope, rate, len(sequence), sequence.shape[1]), strict=True
    ):
        z = np.exp(xi) / np.sum(np.exp(xi))
        yield (z / losses) / np.sum(z / losses)


def test_famo_recurrence():
    sequence = positive_losses(21)
    expected = list(famo_weights(sequence[:-1], sequence[1:], 0.1, 0.01))
    weights = run(samo_jax.famo(0.1, 0.01), sequence[:-1])[0]
    np.testing.assert_allclose(weights, expected, rtol=5e-5)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)


def test_famo_with_the_same_batch_after_the_step():
    sequence, after = positive_losses(8), positive_losses(8, seed=1)
    weighting = samo_jax.famo(0.1, 0.01)
    state, update = weighting.init(NUM_TASKS), jax.jit(weighting.update)
    expected = famo_weights(sequence, after, 0.1, 0.01)
    before = np.ones(NUM_TASKS)  # ignored: there is no step yet
    for t, wanted in enumerate(expected):
        weights, state = update(None, state, losses=sequence[t], losses_after=before)
        np.testing.assert_allclose(weights, wanted, rtol=5e-5)
        before = after[t]
    spoilt = update(None, state, losses=sequence[0], losses_after=0 * before)[1]
    chex.assert_trees_all_equal(spoilt.method_state.logits, state.method_state.logits)


@pytest.mark.parametrize("window", [1, 3])
def test_dwa_recurrence(window):
    sequence = positive_losses(5 * window)
    epochs = sequence.reshape(5, window, NUM_TASKS).mean(axis=1)
    expected = np.full((5, NUM_TASKS), 1 / NUM_TASKS)
    for epoch in range(2, 5):
        rates = np.exp(epochs[epoch - 1] / epochs[epoch - 2] / 1.5)
        expected[epoch] = rates / rates.sum()
    weights, _ = run(samo_jax.dwa(1.5, window=window), sequence)
    np.testing.assert_allclose(weights, np.repeat(expected, window, 0), rtol=1e-5)


def test_dwa_survives_zero_and_overflowing_ratios():
    sequence = np.array([[0.0, 1e-30, 1.0], [1.0, 1e30, 1.0], [1.0, 1.0, 1.0]])
    weights, state = run(samo_jax.dwa(0.01, window=1), sequence)
    np.testing.assert_allclose(weights[-1], [0, 1, 0], atol=1e-6)
    assert_finite(state)


@pytest.mark.slow
def test_log_losses_is_the_weighting_on_gradients_of_logarithms(key):
    losses = jnp.array([0.3, 2.0, 5.0])
    task_grads = jax.random.normal(key, (3, 6))
    logs = task_grads / losses[:, None]
    for weighting in (samo_jax.mean(), samo_jax.mgda(), samo_jax.fairgrad(2.0)):
        wanted, _ = weighting.update(
            samo_jax.gramian(logs), weighting.init(3), losses=jnp.log(losses)
        )
        weights = run(
            samo_jax.log_losses(weighting), losses[None], samo_jax.gramian(task_grads)
        )[0][0]
        np.testing.assert_allclose(
            weights @ task_grads, wanted @ logs, rtol=1e-4, atol=1e-5
        )


def test_log_losses_of_the_mean_points_along_the_geometric_mean():
    losses = positive_losses(1)
    weights = run(samo_jax.log_losses(samo_jax.mean()), losses)[0][0]
    geometric = run(samo_jax.geometric_mean(), losses)[0][0]
    np.testing.assert_allclose(
        geometric, weights * np.prod(losses) ** (1 / 3), rtol=1e-5
    )


def test_log_losses_carries_the_weightings_state_and_extra_arguments(key):
    drawing = samo_jax.Weighting(
        lambda _num_tasks: {"key": key, "seen": jnp.zeros(())},
        lambda _, state, *, losses, offset: (losses, state | {"seen": offset}),
    )
    weighting = samo_jax.log_losses(drawing)
    weights, state = run(weighting, np.array([[1.0, np.e]]), offset=jnp.ones(()))
    np.testing.assert_allclose(weights, [[0, 1 / np.e]], rtol=1e-6)
    assert state.method_state["seen"] == 1
    _, state = run(weighting, np.array([[1.0, -1.0]]), offset=jnp.ones(()))
    assert state.method_state["seen"] == 0


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["geometric_mean", "uncertainty", "imtl_l", "famo", "log_losses", "dwa"],
        but={"famo", "dwa"},
    ),
)
def test_permutation_equivariance(name):
    sequence, order = positive_losses(7), np.array([2, 0, 1])
    np.testing.assert_allclose(
        run(WEIGHTINGS[name], sequence[:, order])[0],
        run(WEIGHTINGS[name], sequence)[0][:, order],
        rtol=1e-5,
    )


@pytest.mark.parametrize("method", ["stch", "pbi", "cosmos"])
def test_permutation_equivariance_with_a_preference(method):
    losses, order = positive_losses(1), np.array([2, 0, 1])
    factory = {
        "stch": lambda p: samo_jax.stch(0.3, p),
        "pbi": lambda p: samo_jax.pbi(2.0, p),
        "cosmos": lambda p: samo_jax.cosmos(p, 1.5),
    }[method]
    np.testing.assert_allclose(
        run(factory(PREFERENCE[order]), losses[:, order])[0],
        run(factory(PREFERENCE), losses)[0][:, order],
        rtol=1e-5,
    )


@pytest.mark.slow
def test_scales():
    losses = positive_losses(6)
    row = np.array([1e-15, 1.0, 1e15])
    for scale in (1e-12, 1e12):
        for name in ("dwa", "famo", "geometric_mean"):  # of all losses: no change
            weights = run(WEIGHTINGS[name], losses)[0]
            scaled = run(WEIGHTINGS[name], losses * scale)[0]
            np.testing.assert_allclose(scaled, weights, rtol=2e-4)
    for name in ("famo", "geometric_mean"):  # of one loss: w_i L_i in proportion
        products = run(WEIGHTINGS[name], losses)[0] * losses
        scaled = run(WEIGHTINGS[name], losses * row)[0] * losses * row
        np.testing.assert_allclose(
            scaled / scaled.sum(1, keepdims=True),
            products / products.sum(1, keepdims=True),
            rtol=1e-3,
        )


@pytest.mark.parametrize("name", mostly_slow(["stch", "geometric_mean", "dwa"], but=1))
def test_equal_losses_give_mean_like_weights(name):
    weighting = samo_jax.stch(0.1) if name == "stch" else WEIGHTINGS[name]
    weights = run(weighting, np.full((3, 4), 2.5))[0]
    np.testing.assert_allclose(weights, 0.25, rtol=1e-6)


def test_stch_is_between_the_maximum_and_a_little_more():
    losses = positive_losses(1)[0]
    value = samo_jax.stch_loss(losses, mu=1e-3)
    assert losses.max() - 1e-5 <= value <= losses.max() + 1e-3 * np.log(3) + 1e-5
    assert jnp.isfinite(samo_jax.stch_loss(1e30 * losses, mu=1e-3))


def test_losses_on_the_ray_and_at_the_origin_have_finite_weights():
    on_ray = run(samo_jax.pbi(5.0, [1.0, 1.0]), np.array([[2.0, 2.0]]))[0][0]
    np.testing.assert_allclose(on_ray, np.sqrt(0.5), rtol=1e-5)
    at_origin = run(samo_jax.cosmos([0.5, 0.5], 3.0), np.zeros((1, 2)))[0][0]
    np.testing.assert_allclose(at_origin, 0.5)


@all_weightings
def test_losses_that_are_not_finite_change_nothing(name):
    weighting = WEIGHTINGS[name]
    sequence = positive_losses(5)
    sequence[0, 1], sequence[3, 0] = np.nan, np.inf
    weights, state = run(weighting, sequence)
    np.testing.assert_allclose(weights[0], 1 / NUM_TASKS)
    np.testing.assert_array_equal(weights[3], weights[2])
    wanted, clean = run(weighting, sequence[[1, 2, 4]])
    np.testing.assert_allclose(weights[4], wanted[-1], rtol=1e-5)
    np.testing.assert_array_equal(state.unusable, [1, 1, 0])
    state = state._replace(unusable=clean.unusable)
    chex.assert_trees_all_close(state, clean, rtol=1e-5, atol=1e-6)


@log_weightings
@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_losses_without_a_logarithm_change_nothing(name, bad):
    weighting = WEIGHTINGS[name]
    sequence = positive_losses(3)
    sequence[2, 1] = bad
    weights, state = run(weighting, sequence)
    np.testing.assert_array_equal(weights[2], weights[1])
    np.testing.assert_array_equal(state.unusable, [0, 1, 0])
    _, clean = run(weighting, sequence[:2])
    state = state._replace(unusable=clean.unusable)
    chex.assert_trees_all_close(state, clean, rtol=1e-6)
    assert_finite(run(weighting, np.full((2, 3), bad)))


@all_weightings
def test_extreme_losses_leave_a_finite_state(name):
    weighting = WEIGHTINGS[name]
    sequence = np.array([[1e-37, 1.0, 1e37]] * 4 + [[1e37, 1.0, 1e-37]] * 4)
    assert_finite(run(weighting, sequence))
