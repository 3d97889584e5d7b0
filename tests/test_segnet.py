"""SegNet and SegNet-MTAN: sizes of the reference, who reaches whom, and the layers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samo_jax.experiments.networks import segnet
from samo_jax.experiments.networks.segnet import (
    SegNet,
    SegNetMTAN,
    enlarge,
    max_pool,
    max_unpool,
)

NYU = {"segmentation": 13, "depth": 1, "normals": 3}
KEY = jax.random.key(0, impl="rbg")  # compiles faster
NETWORKS = pytest.mark.parametrize("network", [SegNet, SegNetMTAN])


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def variables_of(network, outputs, width=1.0):
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    net = network(outputs, width)
    return jax.eval_shape(lambda x: net.init_with_output(KEY, x, train=True), images)


def convolutions(area, *channels):
    """Weights and biases of convolutions between these channels."""
    return sum((area * a + 1) * b for a, b in itertools.pairwise(channels))


# Channels through MTAN's SegNet, image to last features, each a 3x3 convolution with
# batch norm (a scale and a shift).
ENCODER = (3, 64, 64, 128, 128, *3 * [256], *3 * [512], *3 * [512])
DECODER = (512, *3 * [512], *3 * [256], *3 * [128], 64, 64, 64, 64)
SHARED = sum(convolutions(9, *c) + 2 * sum(c[1:]) for c in (ENCODER, DECODER))


def head(outputs):
    return convolutions(9, 64, 64) + convolutions(1, 64, outputs)


def test_segnet_has_the_size_of_the_reference():
    """MTAN's code states 24,981,069 for segmentation alone."""
    assert SHARED + head(13) == 24_981_069
    _, variables = variables_of(SegNet, {"segmentation": 13})
    assert count(variables) == 24_981_069
    _, variables = variables_of(SegNet, NYU)
    assert count(variables) == SHARED + sum(map(head, NYU.values()))


@pytest.mark.slow
def test_mtan_has_the_size_of_the_reference():
    """From the channels of its attention modules and of the layers between them."""
    attention = [  # into and out of each, encoder then decoder
        *[(64, 64), (2 * 128, 128), (2 * 256, 256), (2 * 512, 512), (2 * 512, 512)],
        *[(2 * 64, 64), (128 + 64, 64), (256 + 128, 128), (512 + 256, 256)],
        (512 + 512, 512),
    ]
    between = [
        *[(64, 128), (128, 256), (256, 512), (512, 512), (512, 512)],
        *[(64, 64), (128, 64), (256, 128), (512, 256), (512, 512)],
    ]
    masks = sum(convolutions(1, a, b, b) + 4 * b for a, b in attention)
    layers = sum(convolutions(9, a, b) + 2 * b for a, b in between)
    _, variables = variables_of(SegNetMTAN, NYU)
    assert count(variables) == SHARED + layers + sum(
        masks + head(n) for n in (13, 1, 3)
    )
    assert set(variables["params"]) - set(NYU) == {
        "trunk",
        *(f"{way}_{i}" for way in ("down", "up") for i in range(5)),
    }


@NETWORKS
def test_shapes(network):
    outputs, variables = variables_of(network, NYU, width=0.125)
    for task, channels in NYU.items():
        assert outputs[task].shape == (1, 64, 96, channels)
        assert task in variables["params"]
    channels = {
        leaf.shape[-1] for leaf in jax.tree.leaves(variables["params"]["trunk"])
    }
    assert channels == {8, 16, 32, 64}


@pytest.fixture(params=[SegNet, SegNetMTAN], ids=["segnet", "mtan"])
def small(request, monkeypatch):
    """A narrow network of two stages, random parameters, fresh statistics, images."""
    monkeypatch.setattr(segnet, "CHANNELS", (64, 128))
    monkeypatch.setattr(segnet, "CONVOLUTIONS", (1, 2))
    net = request.param({"segmentation": 3, "depth": 1}, width=1 / 16)
    rng = np.random.default_rng(0)
    images = rng.random((2, 8, 16, 3), np.float32)
    shapes = jax.eval_shape(lambda: net.init(KEY, images, train=True))
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes["params"]
    )
    stats = jax.tree.map_with_path(
        lambda path, leaf: np.full(leaf.shape, path[-1].key == "var", np.float32),
        shapes["batch_stats"],
    )
    return net, {"params": params, "batch_stats": stats}, images


@pytest.mark.slow
@pytest.mark.parametrize("small", [SegNetMTAN], indirect=True)
def test_gradient_and_batch_statistics(small):
    """A loss reaches its task's own part and the shared ones; all statistics change.

    Those of the first layer change by a tenth of the way to those of the images.
    """
    net, variables, images = small
    params, stats = variables["params"], variables["batch_stats"]

    @jax.jit
    def gradient_and_update(params):
        def loss(params):
            outputs, updated = net.apply(
                {"params": params, "batch_stats": stats},
                images,
                train=True,
                mutable="batch_stats",
            )
            return jnp.sum(outputs["depth"] ** 2), updated["batch_stats"]

        return jax.grad(loss, has_aux=True)(params)

    gradients, updated = gradient_and_update(params)
    for part, gradient in gradients.items():
        reached = any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
        assert reached == (part != "segmentation"), part
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), stats, updated)
    assert all(jax.tree.leaves(changed))

    first = params["trunk"]["encoder_0_0"]["Conv_0"]
    features = jax.lax.conv_general_dilated(
        images,
        first["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    features += first["bias"]
    new = updated["trunk"]["encoder_0_0"]["BatchNorm_0"]
    np.testing.assert_allclose(
        new["mean"], 0.1 * features.mean((0, 1, 2)), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        new["var"], 0.9 + 0.1 * features.var((0, 1, 2)), rtol=1e-4
    )


def test_evaluation_treats_images_one_by_one(small):
    net, variables, images = small

    @jax.jit
    def evaluate(images):
        return net.apply(variables, images, train=False)

    both = evaluate(images)
    for task, output in evaluate(np.stack([images[0], images[0] ** 2])).items():
        np.testing.assert_allclose(output[0], both[task][0], rtol=1e-4, atol=1e-5)
        assert not np.allclose(output[1], both[task][1])


@pytest.mark.parametrize("seed", [0, 1])
def test_max_pool_and_unpool(seed):
    x = np.random.default_rng(seed).integers(-5, 5, (2, 4, 6, 3)).astype(np.float32)
    pooled, places = max_pool(jnp.asarray(x))
    unpooled = max_unpool(pooled, places)
    expected = np.zeros_like(x)
    for n, i, j, c in np.ndindex(2, 2, 3, 3):
        window = x[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        assert pooled[n, i, j, c] == window.max()
        row, column = divmod(int(window.argmax()), 2)
        expected[n, 2 * i + row, 2 * j + column, c] = window.max()
    np.testing.assert_array_equal(unpooled, expected)
    gradient = jax.grad(lambda x: max_pool(x)[0].sum())(jnp.asarray(x))
    ones = max_unpool(jnp.ones_like(pooled), places)
    np.testing.assert_array_equal(gradient, ones)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (4, 5)])
def test_enlarge(size):
    """Corners on corners, and exact for what is linear along each axis."""
    height, width = size
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    large = np.asarray(enlarge(jnp.asarray(x)))
    assert large.shape == (2, 2 * height, 2 * width, 3)
    np.testing.assert_allclose(
        large[:, :: 2 * height - 1, :: 2 * width - 1],
        x[:, [0, -1]][:, :, [0, -1]],
        rtol=1e-6,
    )
    row, column = np.indices(size)
    plane = jnp.asarray((2.0 * row - column)[None, :, :, None])
    rows = np.linspace(0, height - 1, 2 * height)[:, None]
    columns = np.linspace(0, width - 1, 2 * width)
    np.testing.assert_allclose(
        enlarge(plane)[0, :, :, 0], 2 * rows - columns, rtol=1e-5, atol=1e-6
    )


@NETWORKS
def test_images_must_halve_five_times(network):
    with pytest.raises(
        ValueError, match=r"multiples of 32, got shape \(1, 48, 64, 3\)"
    ):
        jax.eval_shape(
            lambda: network(NYU).init(KEY, jnp.zeros((1, 48, 64, 3)), train=True)
        )
