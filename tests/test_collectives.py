"""What devices exchange in a SAMO step, and that it is the step of one device."""

import functools
import re
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import samo_jax
from samo_jax._combiners._types import combiner_update

from tiers import mostly_slow
from toy import without_keys

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


def make_tx(solver):
    samo = samo_jax.samo(
        solver, num_tasks=len(TASKS), key=0, param_labels=LABELS, unroll=True
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


def collectives(compiled):
    """How often each kind and result shape is in the program."""
    return Counter((kind, shape) for kind, _, shape in exchanged(compiled))


@pytest.mark.parametrize("sharding", mostly_slow(SHARDINGS, but={"fully sharded"}))
def test_step(sharding):
    params, batch = params_and_batch()
    tx = make_tx(samo_jax.fairgrad())
    state = tx.init(params)
    step = jax.jit(functools.partial(train_step, tx))
    expected = step(params, state, batch)

    param_specs, batch_spec = SHARDINGS[sharding]
    sharded = put(params, param_specs)
    args = sharded, tx.init(sharded), put(batch, batch_spec)
    compiled = step.lower(*args).compile()
    found = compiled(*args)
    chex.assert_trees_all_close(
        *map(without_keys, (found, expected)), rtol=1e-5, atol=1e-6
    )
    for name, leaf in found[0].items():
        wanted = NamedSharding(MESH, param_specs[name])
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)

    counts = collectives(compiled)
    gathered = {shape: n for (kind, shape), n in counts.items() if kind == "all-gather"}
    reduced = {shape: n for (kind, shape), n in counts.items() if kind == "all-reduce"}
    assert {kind for kind, _ in counts} <= {"all-gather", "all-reduce"}
    gradients = 1 + len(TASKS)
    square = (len(TASKS), len(TASKS))
    if sharding == "data":
        # The gradients of g0 and of each task, and losses.
        assert not gathered
        assert reduced[16, 32] == reduced[32, 16] == gradients
        assert square not in reduced
    elif sharding == "fully sharded":
        # Each point is gathered once for its pass; probes and perturbations never are.
        assert gathered[16, 32] == gathered[32, 16] == POINTS
        assert reduced[16, 32] == reduced[32, 16] == gradients
        # One for each sharded leaf; no other sum is larger than a K-vector.
        assert reduced[square] == 2
    else:
        # Activations only, once a pass.
        assert not gathered
        assert reduced[64, 16] == POINTS
        assert reduced[square] == 2
        assert max(map(np.prod, reduced)) == 64 * 16


FULL_GRADIENTS = {
    "graddrop": samo_jax.graddrop(jax.random.key(0)),
    "trimmed_mean": samo_jax.trimmed_mean(1),
    "moco": samo_jax.moco(),
    "excess_mtl": samo_jax.excess_mtl(),
    "db_mtl_momentum": samo_jax.db_mtl_momentum(),
    "grouped": samo_jax.grouped(samo_jax.mgda()),
}


@pytest.mark.slow
def test_combiners_of_full_gradients():
    """The others see the Gramian alone, which is the same on all devices."""
    params, batch = params_and_batch()
    loss_fn = functools.partial(task_losses, batch=batch)
    task_grads = samo_jax.task_gradients(loss_fn, params)

    @jax.jit
    def directions(task_grads, params):
        return {
            name: combiner_update(solver)(
                task_grads, solver.init(params, len(TASKS)), losses=jnp.ones(3)
            )[0]
            for name, solver in FULL_GRADIENTS.items()
        }

    specs = SHARDINGS["fully sharded"][0]
    rows = jax.tree.map(
        lambda spec: P(None, *spec), specs, is_leaf=lambda s: isinstance(s, P)
    )
    chex.assert_trees_all_close(
        directions(put(task_grads, rows), put(params, specs)),
        directions(task_grads, params),
        rtol=1e-5,
        atol=1e-6,
    )
