"""What XLA makes of a step for eight TPU chips or GPUs, none of which need be there."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import samo_jax

import devices as small

H100 = """
platform_name: "CUDA"
dnn_version_info { major: 9 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  threads_per_warp: 32
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""
TOPOLOGIES = {
    "tpu": ("libtpu", {"topology_name": "v5e:2x4"}),
    "cuda": ("jax_cuda12_plugin", {"target_config": H100, "topology": "1x1x8"}),
}


@pytest.fixture(params=TOPOLOGIES)
def mesh(request):
    compiler, options = TOPOLOGIES[request.param]
    pytest.importorskip(compiler, reason=".ci/run installs the compilers")
    topology = topologies.get_topology_desc(platform=request.param, **options)
    return Mesh(np.array(topology.devices), ("x",), axis_types=(AxisType.Auto,))


def compile_for(mesh, function, *arguments):
    """The program of `function`, whose arguments are (arrays, specs)."""

    def abstract(arrays, specs):
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=sharding
            ),
            arrays,
            small.shardings(mesh, arrays, specs),
        )

    return jax.jit(function).lower(*(abstract(*a) for a in arguments)).compile()


def all_reduces(compiled):
    """Type and shape of what is summed over devices."""
    return [
        (dtype, shape)
        for kind, dtype, shape in small.exchanged(compiled)
        if kind == "all-reduce"
    ]


def test_gramians_are_summed_over_devices_once(mesh):
    """Also where a CPU sums them leaf by leaf, in test_collectives."""
    params, batch = small.params_and_batch()
    param_specs, batch_spec = small.SHARDINGS["fully sharded"]
    tx = small.make_tx(samo_jax.fairgrad())
    compiled = compile_for(
        mesh,
        functools.partial(small.train_step, tx),
        (params, param_specs),
        (jax.eval_shape(tx.init, params), P()),
        (batch, batch_spec),
    )
    assert all_reduces(compiled).count(("f32", (3, 3))) == 1


def test_gradients_are_the_only_copies(mesh):
    """Of K times the parameters' size, and on each device a part of them only."""
    tasks, size = 32, 4096
    tx = samo_jax.multitask(
        samo_jax.fairgrad(), samo_jax.global_sam(), num_tasks=tasks, unroll=False
    )

    def task_losses(params, batch):
        hidden = jnp.tanh(jnp.tanh(batch["x"] @ params["first"]) @ params["second"])
        return jnp.mean((hidden @ params["heads"] - batch["y"]) ** 2, axis=0)

    def step(params, state, batch):
        def loss_fn(params):
            # Its transpose lays out the gradients like the parameters.
            params = jax.lax.with_sharding_constraint(
                params, NamedSharding(mesh, P("x"))
            )
            return task_losses(params, batch)

        _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, loss_fn=loss_fn)
        return optax.apply_updates(params, updates), state

    floats = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    params = {name: floats((size, size)) for name in ("first", "second")}
    params["heads"] = floats((size, tasks))
    compiled = compile_for(
        mesh,
        step,
        (params, P("x")),
        (jax.eval_shape(tx.init, params), P()),
        ({"x": floats((64, size)), "y": floats((64, tasks))}, P("x")),
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    gradients = 4 * tasks * count / mesh.size
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert 0.8 * gradients < temporary < 1.5 * gradients  # a TPU's 128 MB on the chip


@pytest.mark.parametrize("masters_vary", [False, True])
def test_sums_of_half_precision(mesh, masters_vary):
    """As docs/precision.md says: in bfloat16, unless the masters vary."""
    tx = samo_jax.samo(samo_jax.fairgrad(), num_tasks=2, key=0, unroll=True)

    def step(params, state, x):
        def task_losses(params):
            outputs = (x.astype(params.dtype) @ params).astype(jnp.float32)
            return [jnp.mean(jnp.tanh(outputs)), jnp.mean(outputs**2)]

        half = samo_jax.mixed_precision(task_losses, jnp.bfloat16)

        def loss_fn(params):
            if masters_vary:
                params = jax.lax.pcast(params, "x", to="varying")
            return jax.lax.pmean(half(params), "x")

        _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        return tx.update(grads, state, params, loss_fn=loss_fn)

    params, x = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((128, 256), (64, 128)))
    compiled = compile_for(
        mesh,
        jax.shard_map(
            step, mesh=mesh, in_specs=(P(), P(), P("x")), out_specs=(P(), P())
        ),
        (params, P()),
        (jax.eval_shape(tx.init, params), P()),
        (x, P("x")),
    )
    summed = {"bf16": 0, "f32": 0}
    for dtype, shape in all_reduces(compiled):
        summed[dtype] += math.prod(shape)
    gradients = 3 * params.size  # and losses
    found = summed["f32" if masters_vary else "bf16"]
    assert gradients <= found < gradients + 100
    assert sum(summed.values()) < gradients + 100
