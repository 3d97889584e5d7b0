"""`normalized`: combiners on gradients of unit, or of unit average, norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samo_jax

NORMS = np.array([0.1, 1.0, 30.0])
UNITS = np.random.default_rng(0).normal(size=(3, 4))
UNITS /= np.linalg.norm(UNITS, axis=1, keepdims=True)
LOSSES = jnp.ones(3)


def update(combiner, state, rows, **extra_args):
    """The direction, weights and state, of a weighting too."""
    if isinstance(combiner, samo_jax.Weighting):
        gramian = samo_jax.gramian(jnp.asarray(rows, "float32"))
        weights, state = combiner.update(gramian, state, losses=LOSSES, **extra_args)
        return weights @ rows, weights, state
    rows = jnp.asarray(rows, "float32")
    return combiner.update(rows, state, losses=LOSSES, **extra_args)


def init(combiner):
    if isinstance(combiner, samo_jax.Weighting):
        return combiner.init(3)
    return combiner.init(jnp.zeros(4), 3)


@pytest.mark.parametrize(
    "combiner",
    [samo_jax.mgda(), samo_jax.mean(), samo_jax.trimmed_mean(0), samo_jax.graddrop(0)],
    ids=repr,
)
def test_of_unit_norm(combiner):
    normalized = samo_jax.normalized(combiner)
    assert type(normalized) is type(combiner)
    wanted, weights, _ = update(combiner, init(combiner), UNITS)
    rows = NORMS[:, None] * UNITS
    found, scaled, state = update(normalized, init(normalized), rows)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scaled * NORMS, weights, rtol=1e-4)
    np.testing.assert_allclose(state.norms, NORMS, rtol=1e-5)


@pytest.mark.parametrize("combiner", [samo_jax.mean(), samo_jax.trimmed_mean(0)])
def test_running_averages_wait_for_absent_tasks(combiner):
    normalized = samo_jax.normalized(combiner, "running", decay=0.75)
    state = init(normalized)
    steps = np.array([[2.0, 4, 0], [4, 0, 8], [1, 1, 1]])
    averages = [[2, 4, 0], [2.5, 4, 8], [2.125, 3.25, 6.25]]
    for norms, average in zip(steps, averages, strict=True):
        present = jnp.array(norms > 0)
        rows = norms[:, None] * UNITS
        direction, weights, state = update(normalized, state, rows, present=present)
        np.testing.assert_allclose(state.norms, average, rtol=1e-5)
        wanted = np.divide(1, average, where=norms > 0, out=np.zeros(3))
        np.testing.assert_allclose(weights, wanted / np.sum(norms > 0), rtol=1e-5)
        np.testing.assert_allclose(direction, weights @ rows, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", ["unit", "running"])
def test_zero_gradients_and_nans(norm):
    normalized = samo_jax.normalized(samo_jax.mgda(), norm)
    gramian = jnp.diag(jnp.array([4.0, 0.0, 1e-40]))
    weights, state = normalized.update(gramian, normalized.init(3))
    np.testing.assert_allclose(weights, [0.5, 0, 0])
    weights, after = normalized.update(gramian * jnp.nan, state)
    assert np.all(np.isfinite(weights))
    np.testing.assert_array_equal(after.norms, state.norms)
    none, _ = normalized.update(0 * gramian, normalized.init(3))
    np.testing.assert_array_equal(none, 0)


def test_samples_are_scaled_too():
    combiner = samo_jax.modo()
    normalized = samo_jax.normalized(combiner)
    other = jnp.asarray(UNITS[::-1].copy(), "float32")
    wanted = update(combiner, init(combiner), UNITS, sample_grads=[other])
    scales = NORMS[:, None].astype("float32")
    found = update(
        normalized, init(normalized), scales * UNITS, sample_grads=[scales * other]
    )
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4, atol=1e-6)


def test_half_precision_comes_back_as_it_was():
    normalized = samo_jax.normalized(samo_jax.trimmed_mean(0))
    rows = jnp.asarray(NORMS[:, None] * UNITS, jnp.bfloat16)
    state = normalized.init(rows[0], 3)
    direction, _, _ = normalized.update(rows, state, losses=LOSSES)
    assert direction.dtype == jnp.bfloat16


def test_in_a_step_a_scaled_loss_changes_nothing():
    def step(scale):
        def loss_fn(w):
            return [jnp.sum((w - 1) ** 2), scale * jnp.sum((w + 2) ** 4)]

        combiner = samo_jax.normalized(samo_jax.mean())
        tx = samo_jax.multitask(combiner, num_tasks=2, gramian_block=1)
        params = jnp.array([0.5, -0.3])
        return jax.jit(lambda p: tx.update(p, tx.init(p), p, loss_fn=loss_fn)[0])(
            params
        )

    np.testing.assert_allclose(step(1e3), step(1.0), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l2"}, "`norm` must be one of"),
        ({"norm": "running", "decay": 1.0}, r"`decay` must be in \[0, 1\), got 1.0"),
        ({"combiner": samo_jax.mean}, "`combiner` must be"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        samo_jax.normalized(**{"combiner": samo_jax.mean()} | arguments)
