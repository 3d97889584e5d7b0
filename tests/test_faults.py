"""Tasks with NaN, with too large gradients, or without examples: left out of a step."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import samo_jax
from samo_jax._solvers._base import combiner_update
from samo_jax.experiments.benchmarks.methods import COMBINERS, Setting

from toy import without_keys

LABELS = {"body": "shared", "a": "a", "b": "b", "c": "c"}
TARGETS = {
    "a": [1.0, 0.0, -1.0, 2.0],
    "b": [0.0, 2.0, 1.0, 0.5],
    "c": [-1.0, 1.0, 0.0, 1.0],
}
# Of a loss l, which becomes factor * l + sqrt(offset + 0 * l) - 1.
NO_FAULT = (1.0, 1.0)
FAULTS = {
    "NaN loss": (np.nan, 1.0),
    "infinite loss": (np.inf, 1.0),
    "NaN gradient of a finite loss": (1.0, 0.0),
    "finite gradient with an infinite square": (1e25, 1.0),
}


def initial_params():
    rng = np.random.default_rng(0)
    return {"body": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)} | {
        name: jnp.asarray(rng.normal(size=3), jnp.float32) for name in TARGETS
    }


def task_losses(params, tasks=tuple(TARGETS), fault=NO_FAULT):
    """Task "b" may have a fault."""
    factor, offset = fault
    losses = {
        name: jnp.mean((jnp.tanh(params["body"]) @ params[name] - target) ** 2)
        for name in tasks
        for target in [jnp.array(TARGETS[name])]
    }
    if "b" in losses:
        losses["b"] = factor * losses["b"] + jnp.sqrt(offset + 0 * losses["b"]) - 1
    return losses


def make_tx(solver, perturbation, tasks=tuple(TARGETS), unroll=True):
    labels = {"body": "shared"} | {name: name for name in tasks}
    labels |= {name: tasks[0] for name in TARGETS if name not in tasks}
    return samo_jax.multitask(
        solver,
        perturbation,
        num_tasks=len(tasks),
        key=0,
        param_labels=labels,
        unroll=unroll,
    )


@functools.partial(jax.jit, static_argnames=("tx", "tasks", "wrap"))
def update(
    tx,
    state,
    params,
    fault=NO_FAULT,
    tasks=tuple(TARGETS),
    task_mask=None,
    wrap=lambda loss_fn: loss_fn,
):
    loss_fn = wrap(functools.partial(task_losses, tasks=tasks, fault=fault))
    _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
    return tx.update(grads, state, params, loss_fn=loss_fn, task_mask=task_mask)


@functools.cache
def update_of_the_others(solver):
    params, others = initial_params(), ("a", "c")
    tx = make_tx(solver, None, others)
    direction, state = update(tx, tx.init(params), params, tasks=others)
    return direction | {"b": jnp.zeros(3)}, state.weights


SOLVERS = {"fairgrad": samo_jax.fairgrad(), "trimmed_mean": samo_jax.trimmed_mean(0)}
FAULTY = {name: make_tx(solver, None) for name, solver in SOLVERS.items()}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_as_if_the_faulty_task_were_not_there(solver, fault):
    params, tx = initial_params(), FAULTY[solver]
    direction, state = update(tx, tx.init(params), params, FAULTS[fault])
    expected, weights = update_of_the_others(SOLVERS[solver])
    chex.assert_trees_all_close(direction, expected, rtol=1e-5)
    np.testing.assert_allclose(state.weights, np.insert(weights, 1, 0), rtol=1e-5)
    np.testing.assert_array_equal(state.skipped, [0, 1, 0])


@pytest.mark.parametrize(
    "solver", [samo_jax.mean(), samo_jax.fairgrad(), samo_jax.dwa(window=1)]
)
@pytest.mark.parametrize("unroll", [True, False])
def test_as_if_the_masked_task_were_not_there(solver, unroll):
    params, tx = initial_params(), make_tx(solver, None, unroll=unroll)
    mask = {"a": True, "b": False, "c": True}
    direction, state = update(tx, tx.init(params), params, task_mask=mask)
    expected, weights = update_of_the_others(solver)
    chex.assert_trees_all_close(direction, expected, rtol=1e-5)
    np.testing.assert_allclose(state.weights, np.insert(weights, 1, 0), rtol=1e-5)
    np.testing.assert_array_equal(state.skipped, [0, 1, 0])


@pytest.mark.parametrize(
    "combiner",
    ["mgda", "cagrad", "upgrad", "imtl_g", "aligned_mtl", "krum", "graddrop"],
)
def test_a_zero_gradient_changes_no_direction(combiner):
    rng = np.random.default_rng(0)
    grads, losses = rng.normal(size=(4, 30)), np.array([1.0, 2.0, 0.5, 3.0])
    others = [0, 1, 3]
    absent = np.where(np.arange(4)[:, None] == 2, 0, grads)

    def direction(grads, losses):
        solver = COMBINERS[combiner](Setting(jax.random.key(0), 1, len(losses)))
        grads, losses = jnp.float32(grads), jnp.float32(losses)
        first = (grads[0],) if isinstance(solver, samo_jax.Combiner) else ()
        state = solver.init(*first, len(losses))
        combined, _, _ = jax.jit(combiner_update(solver))(
            grads, state, losses=losses, losses_after=losses
        )
        return combined / jnp.linalg.norm(combined)

    filled = np.where(np.arange(4) == 2, np.mean(losses[others]), losses)
    np.testing.assert_allclose(
        direction(absent, filled), direction(grads[others], losses[others]), atol=1e-3
    )


PERTURBATIONS = {
    "global": samo_jax.global_sam(0.1),
    "local": samo_jax.local_sam(0.1),
    "joint": samo_jax.joint_sam(0.1),
    "shared probe": samo_jax.joint_sam(0.1, local=samo_jax.probe(shared=True)),
    "memory": samo_jax.memory_sam(0.1),
    "surrogate gap": samo_jax.surrogate_gap_sam(0.1),
}


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_faults_come_and_go(perturbation):
    """One task is left out as long as it must be; nothing stays in any state."""
    params = initial_params()
    tx = make_tx(samo_jax.fairgrad(), PERTURBATIONS[perturbation])
    state = tx.init(params)
    for fault in (NO_FAULT, FAULTS["NaN loss"], NO_FAULT):
        direction, state = update(tx, state, params, fault)
        chex.assert_tree_all_finite((direction, without_keys(state)))
        assert all(np.any(direction[name]) for name in ("body", "a", "c"))
        assert np.any(direction["b"]) == (fault == NO_FAULT)
    np.testing.assert_array_equal(state.skipped, [0, 1, 0])


@pytest.mark.parametrize(
    ("solver", "unroll"),
    [
        (samo_jax.mean(), True),  # one backward pass for all tasks
        (samo_jax.moco(), False),  # 0 * NaN in each turn of the loop
        (samo_jax.moco(), 2),  # and in those of a chunk
    ],
)
def test_a_step_is_skipped_whose_tasks_cannot_be_told_apart(solver, unroll):
    params, tx = initial_params(), make_tx(solver, samo_jax.global_sam(), unroll=unroll)
    _, before = update(tx, tx.init(params), params, NO_FAULT, wrap=jax.jit)
    direction, after = update(tx, before, params, FAULTS["NaN loss"], wrap=jax.jit)
    chex.assert_trees_all_equal(direction, jax.tree.map(jnp.zeros_like, params))
    chex.assert_trees_all_equal(after.solver_state, before.solver_state)
    np.testing.assert_array_equal(after.skipped, [1, 1, 1])
    np.testing.assert_array_equal(after.weights, [0, 0, 0])


def test_no_task_is_there():
    params, tx = initial_params(), make_tx(samo_jax.fairgrad(), None)
    before = tx.init(params)
    mask = jnp.zeros(3, bool)
    direction, after = update(tx, before, params, task_mask=mask)
    chex.assert_trees_all_equal(direction, jax.tree.map(jnp.zeros_like, params))
    chex.assert_trees_all_equal(after.solver_state, before.solver_state)
    np.testing.assert_array_equal(after.skipped, [1, 1, 1])


def test_directions_that_are_not_finite_never_reach_the_parameters():
    """A solver of the user's that divides by zero."""
    solver = samo_jax.Solver(
        lambda num_tasks: jnp.zeros(num_tasks),
        lambda gramian, _state, **_: (1 / (0 * jnp.diag(gramian)),) * 2,
    )
    params, tx = initial_params(), make_tx(solver, None)
    direction, state = update(tx, tx.init(params), params)
    chex.assert_trees_all_equal(direction, jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_array_equal(state.solver_state, [0, 0, 0])
    np.testing.assert_array_equal(state.skipped, [1, 1, 1])


def test_devices_agree():
    """A NaN in one device's examples leaves the task out on all of them."""
    tx = samo_jax.multitask(
        samo_jax.fairgrad(), samo_jax.global_sam(), num_tasks=2, axis_name="x"
    )
    params = jnp.array([1.0, -2.0])
    batch = {"a": jnp.arange(8.0), "b": jnp.arange(8.0).at[5].set(jnp.nan)}

    def step(params, batch):
        def loss_fn(w):
            return {name: jnp.mean((w - x[:, None]) ** 2) for name, x in batch.items()}

        grads = jax.lax.pmean(samo_jax.mean_value_and_grad(loss_fn)(params)[1], "x")
        return tx.update(grads, tx.init(params), params, loss_fn=loss_fn)

    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    direction, state = jax.jit(
        jax.shard_map(step, mesh=mesh, in_specs=(P(), P("x")), out_specs=P())
    )(params, batch)
    np.testing.assert_array_equal(state.skipped, [0, 1])
    gradient = (params - np.mean(np.arange(8))) * state.weights[0]
    np.testing.assert_allclose(direction, gradient, rtol=1e-5)
    assert state.weights[1] == 0


def test_learns_through_faults():
    tx = optax.chain(
        make_tx(samo_jax.fairgrad(), samo_jax.joint_sam(0.01)), optax.adam(3e-2)
    )
    rng = np.random.default_rng(0)
    faults = [NO_FAULT, *FAULTS.values()]
    params = initial_params()
    state = tx.init(params)
    for _ in range(200):
        mask = jnp.asarray(rng.uniform(size=3) < 0.8)
        fault = faults[rng.integers(len(faults))]
        updates, state = update(tx, state, params, fault, task_mask=mask)
        params = optax.apply_updates(params, updates)
        chex.assert_tree_all_finite((params, without_keys(state)))
    losses, start = task_losses(params), task_losses(initial_params())
    assert all(losses[name] < 0.1 * start[name] for name in TARGETS)
    assert optax.tree.get(state, "skipped")[1] > 100


@pytest.mark.parametrize(
    "mask", [True, jnp.ones(2), {"a": True, "b": True}, jnp.ones((3, 1))]
)
def test_wrong_masks(mask):
    params, tx = initial_params(), make_tx(samo_jax.mean(), None)
    with pytest.raises(ValueError, match=r"`task_mask` must be .* array, got"):
        tx.update(params, tx.init(params), params, loss_fn=task_losses, task_mask=mask)
