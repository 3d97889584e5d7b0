"""What devices exchange in a SAMO step, and that it is the step of one device."""

import functools
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import samo_jax
from samo_jax._combiners._types import combiner_update

from devices import (
    MESH,
    POINTS,
    SHARDINGS,
    TASKS,
    exchanged,
    make_tx,
    params_and_batch,
    put,
    task_losses,
    train_step,
)


def collectives(compiled):
    """How often each kind and result shape is in the program."""
    return Counter((kind, shape) for kind, _, shape in exchanged(compiled))


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
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
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
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
            name: combiner_update(combiner)(
                task_grads, combiner.init(params, len(TASKS)), losses=jnp.ones(3)
            )[0]
            for name, combiner in FULL_GRADIENTS.items()
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
