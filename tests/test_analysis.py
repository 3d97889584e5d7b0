"""Sharpness analysis against dense Hessians, direct evaluation and closed forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from samo_jax.experiments.reports import sharpness as analysis
from samo_jax.experiments.reports import sharpness_plots as analysis_plots


class Net(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.tanh(nn.Conv(3, (3, 3), strides=2)(images))
        return nn.Dense(2)(x.reshape(len(x), -1))


@pytest.fixture
def network(key):
    images = np.random.default_rng(0).normal(size=(20, 4, 4, 1)).astype("f4")
    labels = np.random.default_rng(1).normal(size=(20, 2)).astype("f4")
    net = Net()

    def loss_fn(params):
        return jnp.mean((net.apply({"params": params}, images) - labels) ** 2)

    return loss_fn, jax.jit(net.init)(key, images)["params"]


def quadratic(matrix):
    return lambda params: ravel_pytree(params)[0] @ matrix @ ravel_pytree(params)[0] / 2


def test_eigenvalues_of_a_known_spectrum():
    rng = np.random.default_rng(0)
    spectrum = np.concatenate([[9.0, 4, 3, 2.5], rng.uniform(-20, 1, 36)])
    basis = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    matrix = jnp.asarray(basis * spectrum @ basis.T, jnp.float32)
    params = {"a": jnp.ones((4, 5)), "b": [jnp.zeros(20)]}
    values = analysis.hessian_eigenvalues(quadratic(matrix), params, 4)
    np.testing.assert_allclose(values, [9, 4, 3, 2.5], rtol=1e-3)


def test_eigenvalues_of_a_convolution_network_against_the_dense_hessian(network):
    loss_fn, params = network
    flat, unravel = ravel_pytree(params)
    dense = jax.jit(jax.hessian(lambda flat: loss_fn(unravel(flat))))(flat)
    expected = np.asarray(jnp.linalg.eigvalsh(dense))[::-1][:5]
    values = analysis.hessian_eigenvalues(loss_fn, params)
    np.testing.assert_allclose(values, expected, rtol=1e-3)
    ratio = analysis.eigenvalue_ratio(values)
    np.testing.assert_allclose(ratio, expected[0] / expected[4], rtol=1e-3)


def test_eigenvalues_do_not_depend_on_the_start(network):
    values = [analysis.hessian_eigenvalues(*network, 3, seed=seed) for seed in (0, 1)]
    np.testing.assert_allclose(*values, rtol=1e-3)


@pytest.mark.parametrize("num", [0, 3])
def test_wrong_number_of_eigenvalues(num):
    with pytest.raises(ValueError, match=rf"number of parameters, 3, got {num}"):
        analysis.hessian_eigenvalues(quadratic(jnp.eye(3)), jnp.zeros(3), num)


def test_filter_normalisation_by_hand():
    # Two filters of one weight each in a 1 x 1 x 1 x 2 convolution; two dense columns.
    params = {
        "conv": jnp.array([3.0, -5.0]).reshape(1, 1, 1, 2),
        "dense": jnp.array([[3.0, 0.0], [4.0, 0.0]]),
        "bias": jnp.array([7.0, 8.0]),
        "scale": jnp.array(2.0),
    }
    direction = {
        "conv": jnp.array([-2.0, 0.5]).reshape(1, 1, 1, 2),
        "dense": jnp.array([[0.6, 1.0], [0.8, 1.0]]) * 100,
        "bias": jnp.ones(2),
        "scale": jnp.array(1.0),
    }
    out = analysis.filter_normalized(direction, params)
    np.testing.assert_allclose(out["conv"].ravel(), [-3, 5], rtol=1e-6)
    np.testing.assert_allclose(out["dense"], [[3, 0], [4, 0]], rtol=1e-6)
    np.testing.assert_array_equal(out["bias"], 0)
    assert out["scale"] == 0
    zero = jax.tree.map(jnp.zeros_like, direction)
    for leaf in jax.tree.leaves(analysis.filter_normalized(zero, params)):
        np.testing.assert_array_equal(leaf, 0)


def test_random_directions(network, key):
    _, params = network
    first, second = analysis.random_directions(key, params)
    for direction in (first, second):
        for name in ("Conv_0", "Dense_0"):
            kernel, own = params[name]["kernel"], direction[name]["kernel"]
            for i in range(kernel.shape[-1]):
                np.testing.assert_allclose(
                    np.linalg.norm(own[..., i]),
                    np.linalg.norm(kernel[..., i]),
                    rtol=1e-5,
                )
            assert not np.any(direction[name]["bias"])
    a, b = (ravel_pytree(direction)[0] for direction in (first, second))
    assert abs(a @ b) < 0.5 * (a @ a)


def test_slice_against_direct_evaluation(network, key):
    loss_fn, params = network
    directions = analysis.random_directions(key, params)
    values = analysis.loss_slice(loss_fn, params, directions, extent=0.5, points=3)

    def loss_at(x, y):
        return loss_fn(
            jax.tree.map(lambda p, d, e: p + x * d + y * e, params, *directions)
        )

    steps = (-0.5, 0.0, 0.5)
    expected = [[loss_at(x, y) for x in steps] for y in steps]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert len(np.unique(values)) == 9


def test_sharpness_of_a_quadratic(key):
    # l(w + e) - l(w) = g e + e'He / 2, and E u'Hu = trace H / n.
    hessian, params = (
        jnp.diag(jnp.array([4.0, 1.0, 0.0, -1.0])),
        jnp.array([0, 2, 0, 0]),
    )
    out = analysis.sharpness(
        quadratic(hessian), params.astype(float), 0.5, key=key, draws=4000
    )
    np.testing.assert_allclose(out.ascent, 2 * 0.5 + 0.5**2 / 2, rtol=1e-5)
    np.testing.assert_allclose(out.random, 0.5**2 / 2 * 4 / 4, atol=0.04)


def test_sharpness_at_a_stationary_point_is_finite(key):
    out = analysis.sharpness(quadratic(jnp.eye(3)), jnp.zeros(3), 0.5, key=key)
    np.testing.assert_allclose(out, [0, 0.5**2 / 2], rtol=1e-5)


def test_pictures(tmp_path):
    x, y = np.meshgrid(*[np.linspace(-1, 1, 11)] * 2)
    slices = {"plain": 5 * x**2 + y**2, "samo": x**2 + y**2}
    analysis_plots.plot_slices(slices, 1.0, tmp_path / "slices.png")
    spectra = {
        "plain": np.array([9.0, 5, 4, 3, 2]),
        "samo": np.array([3.0, 2, 2, 1, 1]),
    }
    analysis_plots.plot_spectra(spectra, tmp_path / "spectra.png")
    for name in ("slices", "spectra"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
