"""A tiny network on eight devices, and what they exchange in a SAMO step."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import samo_jax

TASKS = ("a", "b", "c")
# Clean pass, two points of a probe for each task, perturbed point of each task.
POINTS = 1 + 3 * len(TASKS)
LABELS = {"first": "shared", "second": "shared", "a": "a", "b": "b", "c": "c"}
SHAPES = {"first": (16, 32), "second": (32, 16), "a": (16,), "b": (16,), "c": (16,)}
REPLICATED = dict.fromkeys(SHAPES, P())
# Specs of parameters and batch, on one mesh axis of eight devices.
SHARDINGS = {
    "data": (REPLICATED, P("x")),
    "fully sharded": (dict.fromkeys(SHAPES, P("x")), P("x")),
    "tensor": (REPLICATED | {"first": P(None, "x"), "second": P("x")}, P()),
}
MESH = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))


@functools.cache
def params_and_batch():
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    batch = {"x": rng.normal(size=(64, 16))}
    batch |= {name: rng.normal(size=64) for name in TASKS}
    return jax.tree.map(np.float32, (params, batch))


def shardings(mesh, tree, spec):
    """Of each leaf, where `spec` is one for all or a tree of them."""
    specs = jax.tree.broadcast(spec, tree, is_leaf=lambda s: isinstance(s, P))
    return jax.tree.map(lambda _, spec: NamedSharding(mesh, spec), tree, specs)


def put(tree, spec):
    return jax.tree.map(jax.device_put, tree, shardings(MESH, tree, spec))


def task_losses(params, batch):
    hidden = jnp.tanh(jnp.tanh(batch["x"] @ params["first"]) @ params["second"])
    return {
        name: jnp.mean((hidden @ params[name] - batch[name]) ** 2) for name in TASKS
    }


def make_tx(combiner):
    samo = samo_jax.samo(
        combiner, num_tasks=len(TASKS), key=0, param_labels=LABELS, unroll=True
    )
    return optax.chain(samo, optax.sgd(0.1))


def train_step(tx, params, state, batch):
    def loss_fn(p):
        return task_losses(p, batch)

    _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
    updates, state = tx.update(grads, state, params, loss_fn=loss_fn)
    return optax.apply_updates(params, updates), state


def exchanged(compiled):
    """Kind, type and shape of each result of a collective in the program."""
    pattern = (
        r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\("
    )
    return [
        (kind, dtype, tuple(int(size) for size in shape.split(",") if size))
        for results, kind in re.findall(pattern, compiled.as_text())
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", results)
    ]
