"""Convolutions in loops over tasks: the same values, in the order a CPU wants."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import pytest
from jax import lax

import samo_jax
from samo_jax._jaxprs import canonicalize_convolutions

from tiers import mostly_slow

SETTINGS = {
    "same": {"window_strides": (1, 1), "padding": "SAME"},
    "strided": {"window_strides": (2, 1), "padding": "VALID"},
    "dilated": {
        "window_strides": (1, 1),
        "padding": ((1, 2), (0, 1)),
        "lhs_dilation": (2, 1),
        "rhs_dilation": (1, 2),
    },
    "grouped": {
        "window_strides": (1, 1),
        "padding": "SAME",
        "feature_group_count": 2,
    },
}
ORDERS = {
    "NHWC": ((2, 7, 6, 4), ("NHWC", "HWIO", "NHWC")),
    "NCHW": ((2, 4, 7, 6), ("NCHW", "HWIO", "NHWC")),
    "CWHN": ((4, 6, 7, 2), ("CWHN", "HWIO", "WNHC")),
    "few features": ((2, 7, 6, 2), ("NHWC", "HWIO", "NHWC")),
    "few features, NCHW": ((2, 2, 7, 6), ("NCHW", "OIHW", "NCHW")),
}


def losses(kernel, x, settings, order):
    """Two tasks, with a remainder for the compiler to keep apart."""
    axis = order[1].index("I")
    features = x.shape[order[0].index("C")] // settings.get("feature_group_count", 1)
    kernel = lax.slice_in_dim(kernel, 0, features, axis=axis)
    y = lax.conv_general_dilated(x, kernel, dimension_numbers=order, **settings)
    return [jnp.sum(jnp.sin(y)), jnp.mean(y**3)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("order", mostly_slow(ORDERS, but={"NHWC"}))
@pytest.mark.parametrize("setting", SETTINGS)
def test_loops_give_the_unrolled_gradients(setting, order):
    shape, dimensions = ORDERS[order]
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], shape)
    sizes = {"H": 3, "W": 2, "I": 4, "O": 6}
    kernel = jax.random.normal(keys[1], [sizes[axis] for axis in dimensions[1]])

    def loss_fn(params):
        return losses(*params, SETTINGS[setting], dimensions)

    def gradients(params, unroll):
        return samo_jax.task_gradients(loss_fn, params, unroll=unroll)

    compiled = jax.jit(gradients, static_argnums=1)
    expected = compiled((kernel, x), True)
    for unroll in (False, 2):
        chex.assert_trees_all_close(
            compiled((kernel, x), unroll), expected, rtol=1e-12, atol=1e-12
        )


def test_convolutions_of_a_loop_are_in_canonical_order():
    """Also those in a scan, a checkpoint and a jitted function inside."""

    @jax.jit
    def layer(h, kernel):
        y = lax.conv_general_dilated(
            h, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(y), None

    def loss_fn(kernels):
        h, _ = lax.scan(jax.checkpoint(layer), jnp.ones((2, 5, 5, 3)), kernels)
        return jnp.sum(h**2, axis=(0, 1, 2))

    kernels = jnp.ones((4, 3, 3, 3, 3)) / 9

    def gradients(kernels, unroll):
        return samo_jax.task_gradients(loss_fn, kernels, unroll=unroll)

    compiled = jax.jit(gradients, static_argnums=1)
    text = compiled.lower(kernels, False).compile().as_text()
    orders = set(re.findall(r"convolution\(.*dim_labels=([^, ]+)", text))
    assert orders == {"b01f_01io->b01f"}
    chex.assert_trees_all_close(
        compiled(kernels, False), compiled(kernels, True), rtol=1e-5
    )


@pytest.mark.parametrize("perturbation", [samo_jax.local_sam(), samo_jax.joint_sam()])
def test_steps_in_a_loop_have_no_other_convolutions(perturbation):
    """Each task's probes and gradients, with an activation of a derivative of its own.

    In another order a step takes some fifteen times as long.
    """
    num_tasks, kernels = 9, {"first": jnp.ones((3, 3, 4, 4)), "last": jnp.ones((4, 9))}

    def loss_fn(params):
        h = lax.conv_general_dilated(
            jnp.ones((2, 6, 6, 4)),
            params["first"],
            *((1, 1), "SAME"),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        h = jax.nn.relu(h).mean((1, 2)) @ params["last"]
        return [jnp.mean(h[:, i] ** 2) for i in range(num_tasks)]

    tx = samo_jax.multitask(
        samo_jax.mean(), perturbation, num_tasks=num_tasks, key=0, unroll=False
    )
    step = jax.jit(functools.partial(tx.update, loss_fn=loss_fn))
    text = step.lower(kernels, tx.init(kernels), kernels).compile().as_text()
    orders = set(re.findall(r"convolution\(.*dim_labels=([^, ]+)", text))
    assert orders == {"b01f_01io->b01f"}


@pytest.mark.parametrize(("features", "convolutions"), [(3, 0), (4, 1)])
def test_convolutions_of_few_features_are_products(features, convolutions):
    def convolve(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    args = jnp.ones((2, 8, 8, features)), jnp.ones((3, 3, features, 5))
    compiled = jax.jit(canonicalize_convolutions(convolve)).lower(*args).compile()
    assert compiled.as_text().count(" convolution(") == convolutions
    chex.assert_trees_all_close(compiled(*args), convolve(*args), rtol=1e-6)


def test_functions_without_convolutions_are_left_alone():
    def double(x):
        return {"twice": 2 * x}

    jaxpr = jax.make_jaxpr(canonicalize_convolutions(double))(1.0)
    assert str(jaxpr) == str(jax.make_jaxpr(double)(1.0))


def test_transpositions_stand_alone_and_once_where_they_can():
    """Of gradients turn by turn; of images and kernels before the loop."""
    x = jax.random.normal(jax.random.key(0), (8, 16, 16, 4))
    kernels = [jnp.ones((3, 3, 4, 4)), jnp.ones((3, 3, 4, 4))]
    order = ("NHWC", "HWIO", "NHWC")

    def loss_fn(kernels):
        h = x
        for kernel in kernels:
            h = jax.nn.relu(
                lax.conv_general_dilated(
                    h, kernel, (2, 2), "SAME", dimension_numbers=order
                )
            )
        return jnp.mean(h, axis=(0, 1, 2))

    gradients = jax.jit(lambda p: samo_jax.task_gradients(loss_fn, p, unroll=False))
    program = gradients.lower(kernels).compile().as_text()
    for computation in program.split("\n\n"):
        assert " select(" not in computation or " transpose(" not in computation
    (loop,) = re.findall(r" while\(.*body=(%\S+),", program)
    body = program.split(f"\n{loop} ")[1].split("\n}")[0]
    assert len(re.findall(r" call\(.*inlineable", body)) == 2  # of two layers' outputs
