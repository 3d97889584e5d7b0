"""A tiny problem with three heads, and helpers shared by the Optax tests."""

import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samo_jax

NUM_TASKS = 3
HEADS = {"trunk": "shared", "left": "left", "right": "right", "up": "up"}
# The loop compiles faster than unrolled passes.
DEFAULTS: dict[str, Any] = {"num_tasks": NUM_TASKS, "key": 0, "unroll": False}
MEAN = samo_jax.mean()
COMBINERS = {"mean": MEAN, "mgda": samo_jax.mgda(), "fairgrad": samo_jax.fairgrad()}
PERTURBATIONS = {
    "plain": None,
    "global_sam": samo_jax.global_sam(0.3),
    "local_sam": samo_jax.local_sam(0.3),
    "joint_sam": samo_jax.joint_sam(0.3),
    "shared_probe": samo_jax.joint_sam(0.3, local=samo_jax.probe(shared=True)),
    "memory_sam": samo_jax.memory_sam(0.3, "adaptive", clean_pass=False),
}
METHODS = [
    pytest.param(combiner, perturbation, id=f"{combiner_name}-{name}")
    for (combiner_name, combiner), (name, perturbation) in itertools.product(
        COMBINERS.items(), PERTURBATIONS.items()
    )
]
DTYPES = [
    pytest.param(False, "float32", id="float32"),
    pytest.param(False, "bfloat16", id="bfloat16"),
    pytest.param(True, "float32", id="float32-x64"),
    pytest.param(True, "float64", id="float64-x64"),
]


def initial_params(dtype="float32"):
    rng = np.random.default_rng(0)
    shapes = {"trunk": (3, 4), "left": (4,), "right": (4,), "up": (4,)}
    return {
        name: jnp.asarray(rng.normal(size=shape), dtype)
        for name, shape in shapes.items()
    }


def batch(seed, dtype="float32"):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(NUM_TASKS, 5))
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


def losses_on(data):
    """Three heads on a tiny trunk."""
    x, y = data

    def loss_fn(params):
        hidden = jnp.tanh(x @ params["trunk"])
        return {
            name: jnp.mean(jnp.square(hidden @ params[name] - y[i]))
            for i, name in enumerate(("left", "right", "up"))
        }

    return loss_fn


def mean_grad(params, data):
    return samo_jax.mean_value_and_grad(losses_on(data))(params)[1]


def multitask(combiner, perturbation, **kwargs):
    return samo_jax.multitask(combiner, perturbation, **DEFAULTS | kwargs)


def samo(combiner=MEAN, rho=0.3, **kwargs):
    return samo_jax.samo(combiner, rho, **DEFAULTS | {"param_labels": HEADS} | kwargs)


def jitted_update(tx, **extra_args) -> Any:
    """`tx.update` as a jitted function of (params, state, grads, data)."""
    return jax.jit(
        lambda params, state, grads, data: tx.update(
            grads, state, params, loss_fn=losses_on(data), **extra_args
        )
    )


def first_direction(tx):
    params, data = initial_params(), batch(0)
    return jitted_update(tx)(params, tx.init(params), mean_grad(params, data), data)[0]


def train_step(tx, data):
    def step(params, state):
        updates, state = tx.update(
            mean_grad(params, data), state, params, loss_fn=losses_on(data)
        )
        return optax.apply_updates(params, updates), state

    return step


def abstract_update(tx, dtype):
    """Shapes, dtypes and weak types of (params, state) and of (updates, new state)."""
    params, data = initial_params(dtype), batch(0, dtype)
    state = tx.init(params)
    after = jax.eval_shape(
        lambda params, state: tx.update(
            mean_grad(params, data), state, params, loss_fn=losses_on(data)
        ),
        params,
        state,
    )
    return jax.eval_shape(lambda: (params, state)), after


@jax.jit
def reference_update(params, state, grads, data, rho=0.3, alpha=0.5, mu=1e-2):
    """`samo(...)` alone, compiled once for many tests."""
    return samo(rho=rho, alpha=alpha, mu=mu).update(
        grads, state, params, loss_fn=losses_on(data)
    )


def reference_direction(state=None, scale=1.0, **hyperparams):
    params, data = initial_params(), batch(0)
    state = samo().init(params) if state is None else state
    grads = optax.tree.scale(scale, mean_grad(params, data))
    return reference_update(params, state, grads, data, **hyperparams)[0]


def assert_close(actual, desired, rtol=1e-5, atol=1e-6):
    chex.assert_trees_all_close(actual, desired, rtol=rtol, atol=atol)


def without_keys(tree):
    return jax.tree.map(
        lambda x: (
            jax.random.key_data(x)
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            else x
        ),
        tree,
    )


def distance(tree, other):
    return optax.tree.norm(optax.tree.sub(tree, other)) / optax.tree.norm(other)


def average(trees):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def assert_finite(tree):
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def types(tree):
    return jax.tree.map(jax.typeof, tree)
