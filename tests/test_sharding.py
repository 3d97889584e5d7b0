"""Sharded parameters and batches on eight devices, with either kind of mesh axis."""

import functools
from itertools import product

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import samo_jax

# Specs of parameters and batch, on one mesh axis of eight devices.
LAYOUTS = {
    "fully sharded": (
        {"body": P("x", None), "heads": {"a": P("x"), "b": P()}},
        P("x"),
    ),
    "data": ({"body": P(), "heads": {"a": P(), "b": P()}}, P("x")),
    "tensor": ({"body": P(None, "x"), "heads": {"a": P("x"), "b": P("x")}}, P()),
}
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}
LABELS = {"body": "shared", "heads": {"a": "a", "b": "b"}}


def make_problem(dtype):
    rng = np.random.default_rng(0)
    params = {
        "body": rng.normal(size=(16, 8)),
        "heads": {"a": rng.normal(size=8), "b": rng.normal(size=8)},
    }
    batch = {
        "x": rng.normal(size=(8, 16)),
        "a": rng.normal(size=8),
        "b": rng.normal(size=8),
    }
    return jax.tree.map(lambda v: v.astype(dtype), (params, batch))


def task_losses(params, batch, gather):
    params = gather(params)
    hidden = jnp.tanh(batch["x"] @ params["body"])
    return {
        name: jnp.mean(
            (jnp.sum(hidden * params["heads"][name], axis=1) - batch[name]) ** 2
        )
        for name in ("a", "b")
    }


def make_step(tx, gather):
    @jax.jit
    def step(params, state, batch):
        def loss_fn(p):
            return task_losses(p, batch, gather)

        losses, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, loss_fn=loss_fn)
        return optax.apply_updates(params, updates), state, losses

    return step


def make_tx(combiner, unroll):
    return optax.chain(
        samo_jax.samo(
            combiner, rho=0.05, num_tasks=2, key=0, param_labels=LABELS, unroll=unroll
        ),
        optax.adam(1e-2, eps=1e-4),
    )


CASES = {
    "fairgrad-float32": (samo_jax.fairgrad(), True, jnp.float32),
    "fairgrad-bfloat16": (samo_jax.fairgrad(), True, jnp.bfloat16),
    "mgda-float32-looped": (samo_jax.mgda(), False, jnp.float32),
}


FAIRGRAD = ["fairgrad-float32", "fairgrad-bfloat16"]
FULLY = ["fully sharded"]


@functools.cache
def single_device_step(name):
    combiner, unroll, dtype = CASES[name]
    tx = make_tx(combiner, unroll)
    params, batch = make_problem(dtype)
    return jax.device_get(make_step(tx, lambda p: p)(params, tx.init(params), batch))


@pytest.mark.parametrize(
    ("name", "axis_type", "layout"),
    [
        ("mgda-float32-looped", AxisType.Explicit, "fully sharded"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                *product(FAIRGRAD, [AxisType.Auto, AxisType.Explicit], FULLY),
                *product(["mgda-float32-looped"], [AxisType.Auto], FULLY),
                # With Auto axes: test_collectives.
                *product(["fairgrad-float32"], [AxisType.Explicit], ["data", "tensor"]),
            )
        ),
    ],
)
def test_a_sharded_step_is_the_single_device_step(name, axis_type, layout):
    combiner, unroll, dtype = CASES[name]
    params, batch = make_problem(dtype)
    expected_params, expected_state, expected_losses = single_device_step(name)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
    specs, batch_spec = LAYOUTS[layout]

    def gather(params):
        """Fully sharded data parallelism; with Auto axes the compiler does it."""
        if axis_type is AxisType.Auto or layout != "fully sharded":
            return params
        return jax.tree.map(lambda p: jax.sharding.reshard(p, P()), params)

    tx = make_tx(combiner, unroll)
    with jax.set_mesh(mesh):
        params = jax.tree.map(
            lambda p, spec: jax.device_put(p, NamedSharding(mesh, spec)), params, specs
        )
        batch = jax.device_put(batch, NamedSharding(mesh, batch_spec))
        state = tx.init(params)
        new_params, new_state, losses = make_step(tx, gather)(params, state, batch)
        assert jax.tree.map(jax.typeof, new_state) == jax.tree.map(jax.typeof, state)
        assert jax.tree.map(jax.typeof, new_params) == jax.tree.map(jax.typeof, params)

    close = functools.partial(
        chex.assert_trees_all_close, **dict.fromkeys(("rtol", "atol"), TOLERANCE[dtype])
    )
    close(jax.device_get(new_params), expected_params)
    close(jax.device_get(losses), expected_losses)
    new_state = jax.device_get(new_state)
    close(new_state[0].weights, expected_state[0].weights)
    # Adam's step hides the direction's length; its first moment does not.
    close(optax.tree.get(new_state, "mu"), optax.tree.get(expected_state, "mu"))
    assert new_state[0].weights.dtype == jnp.float32

    def check(leaf, spec):
        assert leaf.dtype == dtype
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), leaf.ndim)

    jax.tree.map(check, new_params, specs)
