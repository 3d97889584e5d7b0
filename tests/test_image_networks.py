"""ResNet-18 and the CelebA network: shapes, sizes, and batch norm in both modes."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samo_jax.experiments.networks.celeba_net import CelebANet
from samo_jax.experiments.networks.resnet import ResNet18

DOMAINS = ("Art", "Clipart", "Product", "Real_World")
ATTRIBUTES = ("5_o_Clock_Shadow", "Male")


def conv(size, inputs, outputs):
    return size * size * inputs * outputs


def norm(channels):
    return 2 * channels


def dense(inputs, outputs):
    return inputs * outputs + outputs


def num_parameters(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def shapes(net, side):
    """Shapes of the outputs and of the variables, without computing them."""
    images = jnp.zeros((2, side, side, 3))
    return jax.eval_shape(
        lambda key: net.init_with_output(key, images, train=False), jax.random.key(0)
    )


def test_resnet_has_the_size_of_resnet18():
    """11,176,512 is ResNet-18 without its last layer, as torchvision counts it."""
    outputs, variables = shapes(ResNet18(DOMAINS), side=224)
    body = conv(7, 3, 64) + norm(64) + 4 * (conv(3, 64, 64) + norm(64))
    for c in (128, 256, 512):
        body += conv(3, c // 2, c) + 3 * conv(3, c, c) + 4 * norm(c)
        body += conv(1, c // 2, c) + norm(c)
    assert body == 11_176_512
    hidden = dense(512, 512) + norm(512)
    expected = body + hidden + 4 * dense(512, 65)
    assert num_parameters(variables["params"]) == expected
    assert {task: output.shape for task, output in outputs.items()} == dict.fromkeys(
        DOMAINS, (2, 65)
    )
    assert set(DOMAINS) < set(variables["params"])


def test_resnet_halves_the_image_five_times():
    net = ResNet18(("Art",))
    _, variables = shapes(net, side=224)
    _, state = jax.eval_shape(
        lambda variables: net.apply(
            variables,
            jnp.zeros((2, 224, 224, 3)),
            train=False,
            capture_intermediates=True,
            mutable="intermediates",
        ),
        variables,
    )
    layers = state["intermediates"]
    assert layers["Conv_0"]["__call__"][0].shape == (2, 112, 112, 64)
    for stage, (side, channels) in enumerate(
        [(56, 64), (28, 128), (14, 256), (7, 512)]
    ):
        for block in range(2):
            [output] = layers[f"stage_{stage}_block_{block}"]["__call__"]
            assert output.shape == (2, side, side, channels)


def test_celeba_net_has_the_size_of_the_papers():
    outputs, variables = shapes(CelebANet(ATTRIBUTES), side=64)
    channels = [3, 64, 128, 128, 256, 256, 512, 512]
    expected = sum(conv(3, a, b) + norm(b) for a, b in pairwise(channels))
    expected += 2 * (512 * 512 + norm(512)) + 2 * dense(512, 1)
    assert num_parameters(variables["params"]) == expected
    assert {task: output.shape for task, output in outputs.items()} == dict.fromkeys(
        ATTRIBUTES, (2,)
    )
    assert set(ATTRIBUTES) < set(variables["params"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "side", "stride", "padding"),
    [
        (ResNet18(("a", "b"), num_classes=3, width=2), 32, 2, 3),
        (CelebANet(("a", "b"), width=2), 16, 1, 1),
    ],
)
def test_training_and_evaluation(net, side, stride, padding):
    """Batch norm and dropout act in training only; its first mean is by hand."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, side, side, 3)).astype(np.float32)
    _, shaped = shapes(net, side)
    variables = {
        "params": jax.tree.map(
            lambda leaf: rng.normal(size=leaf.shape, scale=0.3).astype(np.float32),
            shaped["params"],
        ),
        "batch_stats": jax.tree.map(
            lambda leaf: np.ones(leaf.shape, np.float32), shaped["batch_stats"]
        ),
    }

    @jax.jit
    def train(seed):
        return net.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(seed)},
        )

    evaluate = jax.jit(lambda images: net.apply(variables, images, train=False))
    together = evaluate(images)
    others_changed = evaluate(np.concatenate([images[:1], 2 * images[1:]]))
    outputs, updated = train(0)
    again, _ = train(0)
    other_seed, _ = train(1)
    for task in ("a", "b"):
        first = together[task][0]
        np.testing.assert_allclose(others_changed[task][0], first, rtol=1e-5)
        assert np.all(others_changed[task][1] != together[task][1])
        assert np.any(outputs[task] != together[task])
        np.testing.assert_array_equal(again[task], outputs[task])
        drops = not np.array_equal(other_seed[task], outputs[task])
        assert drops == isinstance(net, ResNet18)

    activations = jax.lax.conv_general_dilated(
        images,
        variables["params"]["Conv_0"]["kernel"],
        (stride, stride),
        ((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(
        updated["batch_stats"]["BatchNorm_0"]["mean"],
        0.9 + 0.1 * activations.mean((0, 1, 2)),
        rtol=1e-5,
    )
