"""MGDA on normalised gradients, against the QP on the normalised Gramian."""

import jax.numpy as jnp
import numpy as np
import pytest

import samo_jax

from tiers import mostly_slow

NORMALIZATIONS = ["none", "l2", "loss", "loss+"]
LOSSES = np.array([0.5, 2.0, 30.0, 1.5])
all_normalizations = pytest.mark.parametrize("normalization", NORMALIZATIONS)


def jacobian(seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    return np.exp(spread * rng.normal(size=(4, 1))) * rng.normal(size=(4, 9))


def scales(jac, normalization):
    norms = np.linalg.norm(jac, axis=1)
    return {"none": 1, "l2": norms, "loss": LOSSES, "loss+": LOSSES * norms}[
        normalization
    ] * np.ones(4)


@pytest.mark.parametrize("normalization", mostly_slow(NORMALIZATIONS, but=["l2"]))
@pytest.mark.parametrize("seed", mostly_slow(range(5), but=1))
def test_min_norm_point_of_the_normalised_gradients(normalization, seed, x64):  # noqa: ARG001
    jac = jacobian(seed, spread=2.0)
    c = scales(jac, normalization)
    plain = np.asarray(samo_jax.mgda_weights((jac / c[:, None]) @ (jac / c[:, None]).T))
    gramian = jac @ jac.T
    raw, info = samo_jax.mgda_weights(
        gramian, LOSSES, normalization=normalization, apply_to="raw", return_info=True
    )
    np.testing.assert_allclose(raw, plain, atol=1e-9)
    assert info.converged
    assert info.residual < 1e-9
    np.testing.assert_allclose(
        samo_jax.mgda_weights(gramian, LOSSES, normalization=normalization),
        plain / c / np.sum(plain / c),
        atol=1e-9,
    )


@all_normalizations
@pytest.mark.parametrize("scale", mostly_slow([1e-12, 1e12], but=1))
def test_scale_invariance_in_float32(normalization, scale):
    gramian = jacobian() @ jacobian().T
    np.testing.assert_allclose(
        *(
            samo_jax.mgda_weights(g, LOSSES, normalization=normalization)
            for g in (gramian, scale * gramian)
        ),
        rtol=1e-4,
    )


def test_l2_does_not_see_the_scale_of_a_task():
    """d / ||d|| stays when a gradient is scaled."""
    jac = jacobian()
    factors = np.array([1.0, 1e3, 1e-3, 10.0])[:, None]
    first, second = (
        rows.T @ np.asarray(samo_jax.mgda_weights(rows @ rows.T, normalization="l2"))
        for rows in (jac, factors * jac)
    )
    np.testing.assert_allclose(
        first / np.linalg.norm(first), second / np.linalg.norm(second), atol=1e-5
    )


@pytest.mark.parametrize("normalization", ["loss", "loss+"])
@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_losses_that_are_not_positive_keep_the_weights(normalization, bad):
    combiner = samo_jax.mgda(normalization)
    gramian = jnp.asarray(jacobian() @ jacobian().T)
    last, state = combiner.update(gramian, combiner.init(4), losses=jnp.asarray(LOSSES))
    losses = jnp.asarray(LOSSES).at[1].set(bad)
    weights, state = combiner.update(gramian, state, losses=losses)
    np.testing.assert_array_equal(weights, last)
    assert not state.info.finite


@all_normalizations
def test_zero_gradients_are_left_out(normalization):
    jac = jacobian()
    jac[2] = 0
    weights = samo_jax.mgda_weights(jac @ jac.T, LOSSES, normalization=normalization)
    assert weights[2] == 0
    np.testing.assert_allclose(np.sum(weights), 1, rtol=1e-6)
