"""`gramian_block`: the step of all K gradients, which never exist at once."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import samo_jax

from tiers import mostly_slow

NUM_TASKS = 7
PERTURBATIONS = {
    "plain": None,
    "joint": samo_jax.joint_sam(0.3),
    "shared probe": samo_jax.joint_sam(0.3, local=samo_jax.probe(shared=True)),
}


def problem(width=5):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(2, 6, width)).astype(np.float32)
    params = {"trunk": rng.normal(size=(width, width)).astype(np.float32)} | {
        str(i): rng.normal(size=width).astype(np.float32) for i in range(NUM_TASKS)
    }

    def loss_fn(p):
        hidden = jnp.tanh(inputs @ p["trunk"])
        return [
            jnp.mean((hidden @ p[str(i)] - targets[:, 0] * i) ** 2)
            for i in range(NUM_TASKS)
        ]

    return jax.tree.map(jnp.asarray, params), loss_fn


def labels(params):
    return {name: "shared" if name == "trunk" else name for name in params}


def make_tx(perturbation, combiner=None, **kwargs):
    return samo_jax.multitask(
        combiner or samo_jax.fairgrad(),
        perturbation,
        num_tasks=NUM_TASKS,
        key=0,
        param_labels=labels,
        **kwargs,
    )


def compiled_update(tx, params, loss_fn):
    def update(params, state, task_mask):
        _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        return tx.update(grads, state, params, loss_fn=loss_fn, task_mask=task_mask)

    mask = jnp.ones(NUM_TASKS, bool)
    return jax.jit(update).lower(params, tx.init(params), mask).compile()


@functools.cache
def direct_update(name):
    params, loss_fn = problem()
    tx = make_tx(PERTURBATIONS[name], unroll=False)
    return compiled_update(tx, params, loss_fn)


@pytest.mark.parametrize(
    ("name", "block"),
    mostly_slow(
        [
            *(("plain", 1), ("plain", 3)),
            *(("shared probe", 1), ("shared probe", 2)),
            *(("joint", 1), ("joint", 3), ("joint", 9)),
        ],
        but=1,
        several=True,
    ),
)
def test_equals_the_step_of_all_gradients(name, block):
    params, loss_fn = problem()
    tx = make_tx(PERTURBATIONS[name], gramian_block=block)
    update = compiled_update(tx, params, loss_fn)
    for mask in (jnp.ones(NUM_TASKS, bool), jnp.arange(NUM_TASKS) != 2):
        args = params, tx.init(params), mask
        outcomes = update(*args), direct_update(name)(*args)
        chex.assert_trees_all_close(*outcomes, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_holds_few_gradients():
    params, loss_fn = problem(width=300)

    def gradients_held(**kwargs):
        update = compiled_update(make_tx(None, **kwargs), params, loss_fn)
        temporary = update.memory_analysis().temp_size_in_bytes
        return temporary / params["trunk"].nbytes

    assert gradients_held() > NUM_TASKS
    assert gradients_held(gramian_block=1) < 2


@pytest.mark.slow
def test_devices_have_the_gramian_of_the_whole_batch():
    params, _ = problem()
    inputs = jnp.asarray(np.random.default_rng(1).normal(size=(8, 5)), jnp.float32)
    directions = {}
    for block in (None, 2):
        tx = make_tx(samo_jax.global_sam(0.3), axis_name="x", gramian_block=block)

        def step(params, inputs, tx=tx):
            def per_device(p):
                hidden = jnp.tanh(inputs @ p["trunk"])
                return [jnp.mean((hidden @ p[str(i)] - i) ** 2) for i in range(7)]

            grads = samo_jax.mean_value_and_grad(per_device)(params)[1]
            grads = jax.lax.pmean(grads, "x")
            return tx.update(grads, tx.init(params), params, loss_fn=per_device)

        mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
        sharded = jax.shard_map(step, mesh=mesh, in_specs=(P(), P("x")), out_specs=P())
        directions[block] = jax.jit(sharded)(params, inputs)[0]
    chex.assert_trees_all_close(directions[2], directions[None], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"gramian_block": 0}, "`gramian_block` must be a positive int"),
        ({"gramian_block": True}, "`gramian_block` must be a positive int"),
        ({"gramian_block": 2, "unroll": True}, "`gramian_block` loops over tasks"),
        (
            {"gramian_block": 2, "combiner": samo_jax.moco()},
            "`gramian_block` is for a Weighting",
        ),
        (
            {"gramian_block": 2, "perturbation": samo_jax.memory_sam()},
            "`gramian_block` is for perturbations that leave",
        ),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_tx(**{"perturbation": None, **kwargs})


def test_no_independent_batches():
    params, loss_fn = problem()
    tx = make_tx(None, gramian_block=2)
    with pytest.raises(ValueError, match="`sample_loss_fns` needs the gradients"):
        tx.update(
            params,
            tx.init(params),
            params,
            loss_fn=loss_fn,
            sample_loss_fns=[loss_fn],
        )


def test_columns_pass_through_a_custom_vjp():
    @jax.custom_vjp
    def tanh(x):
        return jnp.tanh(x)

    tanh.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g / jnp.cosh(x) ** 2,))
    inputs = jnp.sin(jnp.arange(30.0) ** 2).reshape(5, 6)
    params = jnp.linspace(-0.5, 0.5, 6)

    def loss_fn(params):
        return jnp.square(tanh(inputs @ params) - jnp.arange(5.0))

    def direction(gramian_block):
        tx = samo_jax.multitask(
            samo_jax.fairgrad(),
            samo_jax.global_sam(0.1),
            num_tasks=5,
            unroll=False,
            gramian_block=gramian_block,
        )
        return tx.update(params, tx.init(params), params, loss_fn=loss_fn)[0]

    np.testing.assert_allclose(direction(1), direction(None), rtol=1e-4)
