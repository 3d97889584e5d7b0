"""`diagnostics=True` and `report`: what a step did, at no further pass."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samo_jax

from three_heads import types
from tiers import mostly_slow

NAMES = ("a", "b", "c")
RNG = np.random.default_rng(0)
ROWS = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)
PARAMS = {"body": jnp.asarray(RNG.normal(size=4), jnp.float32), "a": jnp.ones(2)}
LABELS = {"body": "shared", "a": "a"}


def loss_fn(params, bad=False):
    """Linear in the body: its gradients are the rows, everywhere."""
    losses = {name: 30 + ROWS[i] @ params["body"] for i, name in enumerate(NAMES)}
    losses["a"] += jnp.sum(params["a"] ** 2)
    losses["b"] = jnp.where(bad, jnp.nan, losses["b"])
    return losses


def step(tx, state, **args):
    bad = args.pop("bad", False)
    _, grads = samo_jax.mean_value_and_grad(partial(loss_fn, bad=bad))(PARAMS)
    return tx.update(grads, state, PARAMS, loss_fn=partial(loss_fn, bad=bad), **args)


def make(combiner, perturbation=None, **kwargs):
    settings = {"num_tasks": 3, "key": 0, "param_labels": LABELS} | kwargs
    return samo_jax.multitask(
        combiner, perturbation, **{"diagnostics": True} | settings
    )


WAYS = {
    "all gradients": make(samo_jax.fairgrad(), samo_jax.joint_sam()),
    "looped": make(samo_jax.mgda(), unroll=False),
    "blocks": make(samo_jax.mgda(), samo_jax.global_sam(), gramian_block=1),
    "an aggregator": make(samo_jax.graddrop(0)),
    "mean at points of their own": make(samo_jax.mean(), samo_jax.local_sam()),
    "f_mtl": samo_jax.f_mtl(
        samo_jax.mgda(), num_tasks=3, param_labels=LABELS, diagnostics=True
    ),
}


@pytest.mark.parametrize("way", mostly_slow(WAYS, but={"an aggregator"}))
def test_the_gramian_and_losses_are_the_steps(way):
    tx = WAYS[way]
    first = tx.init(PARAMS)
    jitted = jax.jit(partial(step, tx))
    _, state = jitted(first)
    assert types(state) == types(first)
    found = state.diagnostics
    np.testing.assert_allclose(found.gramian, ROWS @ ROWS.T, rtol=1e-5)
    np.testing.assert_allclose(found.losses, list(loss_fn(PARAMS).values()), rtol=0.02)

    _, state = jitted(state, bad=True)
    assert types(state) == types(first)
    present = np.array([1, 0, 1])
    products = (ROWS @ ROWS.T) * present * present[:, None]
    np.testing.assert_allclose(state.diagnostics.gramian, products, rtol=1e-5)
    np.testing.assert_array_equal(np.isnan(state.diagnostics.losses), present == 0)


def test_combine_gradients_has_them_too():
    rows = {"body": ROWS, "a": jnp.ones((3, 2))}
    tx = samo_jax.combine_gradients(
        samo_jax.mgda(), num_tasks=3, param_labels=LABELS, diagnostics=True
    )
    losses = {"a": 1.0, "b": 2.0, "c": 3.0}
    _, state = tx.update(rows, tx.init(PARAMS), losses=losses)
    np.testing.assert_allclose(state.diagnostics.gramian, ROWS @ ROWS.T, rtol=1e-5)
    np.testing.assert_array_equal(state.diagnostics.losses, [1, 2, 3])
    by_index = samo_jax.combine_gradients(
        samo_jax.mgda(), num_tasks=3, param_labels={"body": "shared", "a": 0}
    )
    _, state = by_index.update(rows, state)
    assert np.isnan(state.diagnostics.losses).all()


@pytest.mark.parametrize("combiner", ["mean", "famo"])
def test_without_gradients_there_are_losses_alone(combiner):
    tx = make(getattr(samo_jax, combiner)(), samo_jax.global_sam())
    state = tx.init(PARAMS)
    _, after = jax.jit(partial(step, tx))(state)
    assert types(after) == types(state)
    assert after.diagnostics.gramian is None
    found = samo_jax.report(after, NAMES)
    kinds = {name.split("/")[0] for name in found}
    assert kinds == {"weight", "skipped", "loss"}


@pytest.mark.slow
def test_nothing_changes():
    """Neither the direction, nor the state without them."""
    plain = make(samo_jax.cagrad(), samo_jax.joint_sam(), diagnostics=False)
    full = make(samo_jax.cagrad(), samo_jax.joint_sam())
    (direction, state), (expected, other) = (
        jax.jit(partial(step, tx))(tx.init(PARAMS)) for tx in (full, plain)
    )
    assert other.diagnostics is None
    for pair in ((direction, expected), (state._replace(diagnostics=None), other)):
        jax.tree.map(np.testing.assert_array_equal, *pair)


def test_no_further_pass():
    """Of the compiled step, within the Gramian's own work."""

    def flops(diagnostics):
        tx = make(samo_jax.mgda(), samo_jax.local_sam(), diagnostics=diagnostics)
        compiled = jax.jit(partial(step, tx)).lower(tx.init(PARAMS)).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(True) <= flops(False) + 50


def expected_report(state):
    gramian = np.asarray(ROWS @ ROWS.T)
    norms = np.sqrt(np.diag(gramian))
    cosines = gramian / norms / norms[:, None]
    values = {f"weight/{name}": w for name, w in zip(NAMES, state.weights, strict=True)}
    values |= {f"norm/{name}": x for name, x in zip(NAMES, norms, strict=True)}
    values |= {"cosine/a-b": cosines[0, 1], "cosine/b-c": cosines[1, 2]}
    upper = cosines[np.triu_indices(3, 1)]
    return values | {"conflict_rate": np.mean(upper < 0), "skipped/b": 0}


@pytest.mark.parametrize("tasks", [NAMES, "losses"])
def test_report_of_a_chain_under_jit(tasks):
    tx = optax.chain(optax.identity(), WAYS["all gradients"], optax.adam(1e-2))

    @jax.jit
    def reported(state):
        state = step(tx, state)[1]
        names = loss_fn(PARAMS) if tasks == "losses" else tasks
        return state, samo_jax.report(state, names)

    state, found = reported(tx.init(PARAMS))
    assert all(value.shape == () for value in found.values())
    for name, value in expected_report(state[1]).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    info = state[1].combiner_state.info
    np.testing.assert_array_equal(found["solver/converged"], info.converged)
    np.testing.assert_array_equal(found["solver/steps"], info.steps)


def test_report_leaves_absent_tasks_out_of_the_conflicts():
    tx = WAYS["looped"]
    mask = jnp.array([True, False, True])
    _, state = step(tx, tx.init(PARAMS), task_mask=mask)
    found = samo_jax.report(state, NAMES)
    assert found["conflict_rate"] == float(ROWS[0] @ ROWS[2] < 0)
    assert np.isnan(found["loss/b"])
    assert found["weight/b"] == found["norm/b"] == found["cosine/a-b"] == 0
    assert found["skipped/b"] == 1


def test_report_of_wrapped_states():
    """LookSAM's inner state, and solves that are stacked by group."""
    tx = samo_jax.look_sam(make(samo_jax.grouped(samo_jax.fairgrad())), num_tasks=3)
    _, state = step(tx, tx.init(PARAMS))
    found = samo_jax.report(state, NAMES)
    assert found["solver/converged"]
    one = samo_jax.single_task(samo_jax.sam()).init(PARAMS)
    assert set(samo_jax.report(one, jnp.ones(()))) == {"weight/0", "skipped/0"}


def test_two_states_are_ambiguous():
    state = WAYS["looped"].init(PARAMS)
    with pytest.raises(ValueError, match=r"one MultitaskState .* got 2 in tuple"):
        samo_jax.report((state, state), NAMES)
