"""The small encoder-decoder: shapes, size, who reaches whom, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from samo_jax.experiments.data.scenes import draw_scenes
from samo_jax.experiments.networks.encoder_decoder import EncoderDecoder
from samo_jax.experiments.problems.dense_tasks import DEPTH, NORMALS, SEGMENTATION

from tiers import mostly_slow

OUTPUTS = {"segmentation": 7, "depth": 1, "normals": 3}
KEY = jax.random.key(0, impl="rbg")  # compiles faster
TASKS = {"segmentation": SEGMENTATION, "depth": DEPTH, "normals": NORMALS}


@pytest.fixture(scope="module")
def small():
    """A narrow network, its parameters, and images for it."""
    net = EncoderDecoder(OUTPUTS, widths=(4, 6, 8))
    images = jax.random.uniform(KEY, (2, 16, 16, 3))
    return net, jax.jit(net.init)(KEY, images)["params"], images


def test_shapes_and_size():
    net = EncoderDecoder(OUTPUTS)
    images = jax.ShapeDtypeStruct((2, 48, 64, 3), jnp.float32)
    outputs, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), images)
    assert {task: output.shape for task, output in outputs.items()} == {
        task: (2, 48, 64, channels) for task, channels in OUTPUTS.items()
    }
    assert set(variables) == {"params"}
    assert set(OUTPUTS) < set(variables["params"])
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    convolutions = [  # kernel area, channels in and out
        *[(9, 3, 16), (9, 16, 32), (9, 32, 64), (9, 64, 96), (9, 96, 96)],
        *[(9, 96 + 64, 64), (9, 64 + 32, 32), (9, 32 + 16, 16)],
        *[layer for c in (7, 1, 3) for layer in ((9, 16, 16), (1, 16, c))],
    ]
    assert count == sum((area * a + 1) * b for area, a, b in convolutions)


@pytest.mark.slow
def test_a_head_is_reached_by_its_own_task_alone(small):
    net, params, images = small

    @jax.jit
    @jax.grad
    def gradients(params):
        return jnp.sum(net.apply({"params": params}, images)["depth"] ** 2)

    for part, gradient in gradients(params).items():
        reached = any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
        assert reached == (part not in ("segmentation", "normals")), part


@pytest.mark.parametrize("pixel", mostly_slow([(0, 0), (7, 9), (15, 15)], but=1))
def test_a_pixel_reaches_itself_and_stays_in_its_image(pixel, small):
    net, params, images = small
    other = images.at[(0, *pixel)].add(1.0)
    before, after = (net.apply({"params": params}, x)["depth"] for x in (images, other))
    assert after[(0, *pixel)] != before[(0, *pixel)]
    np.testing.assert_array_equal(after[1], before[1])


@pytest.mark.slow
def test_learns():
    """Adam, 60 steps on four scenes: each loss falls by a third at least."""
    scenes = draw_scenes(4, seed=0, size=(16, 24))
    net = EncoderDecoder(OUTPUTS, widths=(8, 16))
    params = jax.jit(net.init)(KEY, scenes.images)["params"]
    optimizer = optax.adam(3e-3)

    @jax.jit
    def losses(params):
        outputs = net.apply({"params": params}, scenes.images)
        return {t: TASKS[t].loss(outputs[t], scenes.labels[t]) for t in OUTPUTS}

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: sum(losses(p).values()))(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    first, state = losses(params), optimizer.init(params)
    for _ in range(60):
        params, state = step(params, state)
    for task, loss in losses(params).items():
        assert loss < 2 / 3 * first[task], task


def test_images_must_halve():
    with pytest.raises(ValueError, match=r"multiples of 8, got shape \(1, 48, 60, 3\)"):
        EncoderDecoder(OUTPUTS).init(jax.random.key(0), jnp.zeros((1, 48, 60, 3)))
