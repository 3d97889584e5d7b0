"""Whole states go through every library that saves arrays, and training goes on."""

import io
import pickle
from functools import partial

import equinox as eqx
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import samo_jax

from tiers import mostly_slow

PARAMS = {"shared": jnp.array([0.5, -2.0, 1.0]), "left": jnp.ones(2)}
LABELS = {"shared": "shared", "left": "left"}
COMBINERS = {
    "fairgrad": samo_jax.fairgrad(),
    "gradvac": samo_jax.gradvac(key=3),
    "graddrop": samo_jax.graddrop(jax.random.key(4)),
    "famo": samo_jax.famo(),
    "kept weights": samo_jax.mgda(),
}
SETTINGS = {
    "kept weights": {"local": samo_jax.probe(shared=True), "weights_every": 4},
}


def loss_fn(params):
    shared = params["shared"]
    left = jnp.sum((shared[:2] - params["left"]) ** 2)
    return {"left": left, "right": jnp.sum((shared + 1) ** 2)}


def make_tx(combiner, key=0, **settings):
    tx = samo_jax.samo(
        combiner,
        num_tasks=2,
        key=key,
        param_labels=LABELS,
        **settings,
    )
    return optax.chain(tx, optax.adam(0.1))


def train(tx, params, state, steps=3):
    for _ in range(steps):
        _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, loss_fn=loss_fn)
        params = optax.apply_updates(params, updates)
    return params, state


def through_orbax(tree, like, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state", like)


def through_bytes(tree, like, _folder):
    return flax.serialization.from_bytes(like, flax.serialization.to_bytes(tree))


def through_state_dict(tree, like, _folder):
    state_dict = flax.serialization.to_state_dict(tree)
    return flax.serialization.from_state_dict(like, state_dict)


def through_equinox(tree, like, folder):
    eqx.tree_serialise_leaves(folder / "state.eqx", tree)
    return eqx.tree_deserialise_leaves(folder / "state.eqx", like)


def through_pickle(tree, _like, _folder):
    return pickle.loads(pickle.dumps(tree))


def through_numpy(tree, like, _folder):
    file = io.BytesIO()
    np.savez(file, *jax.tree.leaves(tree))
    file.seek(0)
    with np.load(file) as saved:
        return jax.tree.unflatten(jax.tree.structure(like), list(saved.values()))


LIBRARIES = [
    through_orbax,
    through_bytes,
    through_state_dict,
    through_equinox,
    through_pickle,
    through_numpy,
]


@pytest.fixture(scope="module")
def uninterrupted():
    """By combiner: the state after three steps, and what three more make of it."""
    found = {}

    def run(name):
        if name not in found:
            tx = make_tx(COMBINERS[name], **SETTINGS.get(name, {}))
            step = jax.jit(partial(train, tx))
            middle = step(PARAMS, tx.init(PARAMS))
            found[name] = step, middle, step(*middle)
        return found[name]

    return run


@pytest.mark.parametrize("library", mostly_slow(LIBRARIES, but=LIBRARIES[-1:]))
@pytest.mark.parametrize("name", mostly_slow(COMBINERS, but={"gradvac"}))
def test_restored_training_equals_uninterrupted(name, library, uninterrupted, tmp_path):
    step, middle, end = uninterrupted(name)
    tx = make_tx(COMBINERS[name], **SETTINGS.get(name, {}))
    like = PARAMS, tx.init(PARAMS)
    restored = library(middle, like, tmp_path)
    assert jax.tree.structure(restored) == jax.tree.structure(middle)
    jax.tree.map(np.testing.assert_array_equal, step(*restored), end)


def test_states_have_a_norm():
    state = make_tx(COMBINERS["gradvac"]).init(PARAMS)
    assert jnp.isfinite(optax.tree.norm(state))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_draws_are_those_of_the_key_as_given(impl):
    """Whatever its implementation, which the state does not hold."""
    key = jax.random.key(5, impl=impl)
    weighting = samo_jax.random_weights(key)
    weights, _ = weighting.update(jnp.eye(3), weighting.init(3))
    drawn = jax.nn.softmax(jax.random.normal(jax.random.fold_in(key, 0), 3))
    np.testing.assert_array_equal(weights, drawn)


def test_seeds_are_ints_typed_or_legacy_keys():
    def end(key):
        tx = make_tx(samo_jax.pcgrad(key), key)
        return train(tx, PARAMS, tx.init(PARAMS), 1)[0]

    ends = map(end, (0, jax.random.key(0), jax.random.PRNGKey(0)))
    first, *others = ends
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first, other)


@pytest.mark.slow
def test_seeds_may_be_mapped():
    """Keys are tracers then, in the factory's closure and in the state."""

    def end(key):
        tx = make_tx(samo_jax.pcgrad(key), key)
        return train(tx, PARAMS, tx.init(PARAMS), 2)[0]["shared"]

    keys = jax.random.split(jax.random.key(0), 3)
    mapped = jax.jit(jax.vmap(end))(keys)
    np.testing.assert_allclose(mapped[1], end(keys[1]), rtol=1e-5)
    assert len(np.unique(mapped, axis=0)) == 3


@pytest.mark.parametrize("combiner", ["fairgrad", "gradvac", "graddrop"])
def test_typed_keys_of_older_states_are_refused(combiner):
    tx = make_tx(COMBINERS[combiner])
    state = tx.init(PARAMS)
    older = jax.tree.map(
        lambda leaf: (
            jax.random.wrap_key_data(leaf) if leaf.dtype == jnp.uint32 else leaf
        ),
        state,
    )
    if combiner != "fairgrad":  # the combiner's key alone
        older = older[0]._replace(key=state[0].key), older[1]
    with pytest.raises(ValueError, match=r"uint32 data, got key<fry>.*key_data"):
        train(tx, PARAMS, older, 1)
