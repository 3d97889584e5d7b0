"""What XLA makes of a step for the chips of a TPU, which need not be there."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_collectives as small
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import samo_jax

pytest.importorskip("libtpu", reason="pip install 'jax[tpu]'")

CHIPS = 8


@functools.cache
def mesh():
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    assert len(topology.devices) == CHIPS
    return Mesh(np.array(topology.devices), ("x",), axis_types=(AxisType.Auto,))


def compile_for_tpu(function, **by_spec):
    """The program of `function`, whose arguments are (arrays, specs)."""

    def abstract(arrays, specs):
        specs = jax.tree.broadcast(specs, arrays, is_leaf=lambda s: isinstance(s, P))
        return jax.tree.map(
            lambda leaf, spec: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=NamedSharding(mesh(), spec)
            ),
            arrays,
            specs,
        )

    args = (abstract(*argument) for argument in by_spec.values())
    return jax.jit(function).lower(*args).compile()


@pytest.mark.parametrize("sharding", small.SHARDINGS)
def test_collectives(sharding):
    """Those of a CPU, but for the Gramian, which is summed over devices once."""
    params, batch = small.params_and_batch()
    param_specs, batch_spec = small.SHARDINGS[sharding]
    tx = small.make_tx(samo_jax.fairgrad())
    compiled = compile_for_tpu(
        functools.partial(small.train_step, tx),
        params=(params, param_specs),
        state=(jax.eval_shape(tx.init, params), P()),
        batch=(batch, batch_spec),
    )
    counts = small.collectives(compiled)
    square = (len(small.TASKS), len(small.TASKS))
    assert counts["all-reduce", square] == (0 if sharding == "data" else 1)
    gradients = 1 + len(small.TASKS) if sharding != "tensor" else 0
    for rows, columns in ((16, 32), (32, 16)):
        gathered = "all-gather", (CHIPS, rows // CHIPS, columns)
        assert counts["all-reduce", (rows, columns)] == gradients
        points = small.POINTS if sharding == "fully sharded" else 0
        assert counts[gathered] == points


def test_gradients_are_the_only_copies():
    """Of K times the parameters' size, and on each chip a part of them only."""
    tasks, size = 32, 4096
    tx = samo_jax.multitask(
        samo_jax.fairgrad(), samo_jax.global_sam(), num_tasks=tasks, unroll=False
    )

    def task_losses(params, batch):
        hidden = jnp.tanh(jnp.tanh(batch["x"] @ params["first"]) @ params["second"])
        return jnp.mean((hidden @ params["heads"] - batch["y"]) ** 2, axis=0)

    def step(params, state, batch):
        loss_fn = functools.partial(task_losses, batch=batch)
        _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, loss_fn=loss_fn)
        return optax.apply_updates(params, updates), state

    floats = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    params = {name: floats((size, size)) for name in ("first", "second")}
    params["heads"] = floats((size, tasks))
    compiled = compile_for_tpu(
        step,
        params=(params, P("x")),
        state=(jax.eval_shape(tx.init, params), P()),
        batch=({"x": floats((64, size)), "y": floats((64, tasks))}, P("x")),
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    gradients = 4 * tasks * count / CHIPS
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert 0.8 * gradients < temporary < 1.5 * gradients  # 128 MB are on the chip


@pytest.mark.parametrize("masters_vary", [False, True])
def test_sums_of_half_precision(masters_vary):
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
    compiled = compile_for_tpu(
        jax.shard_map(
            step, mesh=mesh(), in_specs=(P(), P(), P("x")), out_specs=(P(), P())
        ),
        params=(params, P()),
        state=(jax.eval_shape(tx.init, params), P()),
        x=(x, P("x")),
    )
    results = re.findall(r"= (.*?) all-reduce(?:-start)?\(", compiled.as_text())
    dtypes = re.findall(r"(\w+)\[128,256\]", " ".join(results))
    assert dtypes == ["f32" if masters_vary else "bf16"] * 3
