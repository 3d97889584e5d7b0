"""What users of other sharpness-aware optimisers reported, and is not so here."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samo_jax

from sharpness import (
    PERTURBATIONS,
    RADIUS,
    REPRESENTATIVES,
    descend_on_total,
    initial_params,
    single_task,
)
from tiers import mostly_slow

TREE = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array([0.5])}
SAM = single_task(samo_jax.sam(RADIUS))


def two_updates(tx, loss_fn, params):
    """With the extra arguments of Efficient SAM: four equal examples."""
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(
            jax.grad(loss_fn)(params),
            state,
            params,
            loss_fn=loss_fn,
            example_losses=jnp.full(4, loss_fn(params)),
            example_loss_fn=lambda p, index: loss_fn(p) + 0 * index,
        )
    return updates, state


# A zero gradient is not NaN


@pytest.mark.parametrize("name", mostly_slow(PERTURBATIONS, but=REPRESENTATIVES))
def test_zero_gradient_everywhere(name):
    tx = single_task(PERTURBATIONS[name]())
    updates, state = two_updates(
        tx, lambda p: 0 * jnp.sum(p["kernel"] ** 2), initial_params()
    )
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, updates))
    chex.assert_tree_all_finite(state._replace(key=()))


@pytest.mark.parametrize("name", mostly_slow(PERTURBATIONS, but=REPRESENTATIVES))
def test_zero_gradient_on_all_leaves_but_one(name):
    tx = single_task(PERTURBATIONS[name]())
    updates, state = two_updates(
        tx, lambda p: jnp.sum(jnp.cos(p["kernel"])), initial_params()
    )
    assert np.any(updates.pop("kernel"))
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, updates))
    chex.assert_tree_all_finite(state._replace(key=()))


@pytest.mark.parametrize("name", mostly_slow(PERTURBATIONS, but=REPRESENTATIVES))
def test_zero_gradient_at_the_perturbed_point_alone(name):
    """Where contrib.sam's blend of both branches spreads a NaN."""
    tx = single_task(PERTURBATIONS[name](1.0))
    params = jax.tree.map(lambda w: jnp.full_like(w, -1e-3), initial_params())
    updates, state = two_updates(
        tx, lambda p: jnp.sum(jnp.minimum(p["kernel"], 0.0)), params
    )
    chex.assert_tree_all_finite((updates, state._replace(key=())))


def test_zero_parameters_under_a_relative_radius():
    tx = single_task(samo_jax.adaptive_sam(0.5, eta=0.0))
    params = jax.tree.map(jnp.zeros_like, TREE)
    updates, _ = two_updates(tx, lambda p: jnp.sum(p["w"]) + p["b"][0] ** 2, params)
    chex.assert_trees_all_close(updates, {"w": jnp.ones(3), "b": jnp.zeros(1)})


def test_huge_and_tiny_gradients():
    for factor in (1e-15, 1e15):
        updates, _ = two_updates(
            SAM, lambda p, f=factor: f * jnp.sum(p["w"] ** 2), TREE
        )
        g = TREE["w"]
        expected = 2 * factor * (g + RADIUS * g / jnp.linalg.norm(g))
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)


# Keys, chains, periods, copies, counts


@pytest.mark.parametrize("name", mostly_slow(["joint", "efficient"], but=1))
def test_keys_of_any_kind_give_the_same_run(name):
    runs = [
        descend_on_total(samo_jax.single_task(PERTURBATIONS[name](), key=key))
        for key in (0, jax.random.key(0), jax.random.PRNGKey(0), 1)
    ]
    chex.assert_trees_all_equal(*runs[:3])
    assert np.any(abs(runs[0][0]["kernel"] - runs[3][0]["kernel"]) > 1e-4)


@pytest.mark.parametrize("name", ["joint", "efficient"])
def test_a_key_is_required(name):
    with pytest.raises(ValueError, match=r"`key` is required.*jax\.random\.key\(0\)"):
        samo_jax.single_task(PERTURBATIONS[name]())


def test_extra_arguments_reach_every_member_of_a_chain():
    seen = []

    def update(updates, state, params=None, **extra_args):
        del params
        seen.append(sorted(extra_args))
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    tx = optax.chain(spy, SAM, spy, optax.clip_by_global_norm(1.0), optax.adam(0.1))
    two_updates(tx, lambda p: jnp.sum(p["w"] ** 2), TREE)
    names = ["example_loss_fn", "example_losses", "loss_fn"]
    assert seen == [names] * 4


@pytest.mark.slow
def test_a_period_of_one_is_sam():
    every_step = samo_jax.look_sam(SAM, every=1)
    chex.assert_trees_all_close(
        descend_on_total(every_step), descend_on_total(SAM), rtol=1e-5, atol=1e-6
    )


# Trees like the parameters, and arrays beside them.
MEMORY = {
    "friendly": (1, 0),
    "momentum": (1, 0),
    "joint-probes": (0, 1),
    "memory": (1, 0),
    "memory-adaptive": (1, 1),
}


@pytest.mark.parametrize(
    "name", mostly_slow(PERTURBATIONS, but={"sam", "joint", "memory"})
)
def test_parameters_are_not_stored(name):
    """And what memory there is is float32, unless its dtype is a setting."""
    params = initial_params("bfloat16")
    state = single_task(PERTURBATIONS[name]()).init(params)
    memory = jax.tree.leaves(state.perturbation_state)
    trees, arrays = MEMORY.get(name, (0, 0))
    assert len(memory) == len(params) * trees + arrays
    assert not any(leaf.any() for leaf in memory)
    if not name.startswith("memory"):
        assert all(leaf.dtype == jnp.float32 for leaf in memory)


@pytest.mark.parametrize("name", mostly_slow(["sam", "momentum", "efficient"], but=1))
def test_one_update_is_one_step_of_the_optimiser(name):
    tx = optax.chain(single_task(PERTURBATIONS[name]()), optax.adam(0.1))
    _, state = two_updates(tx, lambda p: jnp.sum(p["w"] ** 2), TREE)
    assert optax.tree.get(state, "count") == optax.tree.get(state, "step") == 2


# Low precision


def test_perturbed_point_of_bfloat16_parameters_is_the_rounded_float32_sum():
    """The gradient of this loss is the point itself."""
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), initial_params())

    def loss_fn(p):
        return sum(jnp.sum(leaf.astype(jnp.float32) ** 2) / 2 for leaf in p.values())

    updates, _ = SAM.update(params, SAM.init(params), params, loss_fn=loss_fn)
    wide = {n: np.asarray(w, np.float32) for n, w in params.items()}
    length = np.sqrt(sum(np.sum(w**2) for w in wide.values()))
    expected = {
        n: jnp.asarray(w + np.float32(RADIUS) / length * w, jnp.bfloat16)
        for n, w in wide.items()
    }
    chex.assert_trees_all_equal(updates, expected)


def test_small_steps_survive_in_float32_parameters():
    """All of a step that bfloat16 rounds away, with bfloat16 inside the loss."""
    tx = single_task(samo_jax.sam(1e-3))

    def loss_fn(p):
        compute = jnp.sum(jnp.sin(p["w"].astype(jnp.bfloat16))).astype(jnp.float32)
        return jnp.sum(p["w"] ** 2) / 2 + 0 * compute

    def step(params):
        grads = jax.grad(loss_fn)(params)
        return tx.update(grads, tx.init(params), params, loss_fn=loss_fn)[0]["w"]

    w = np.asarray(TREE["w"])
    moved = step(TREE) - w
    np.testing.assert_allclose(moved, 1e-3 * w / np.linalg.norm(w), rtol=1e-3)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), TREE)
    np.testing.assert_array_equal(step(half), half["w"])  # documented


# Dropout and batch statistics


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(nn.Dense(8)(x))
        scale = self.param("scale", nn.initializers.ones, (8,))
        return jnp.sum(nn.Dropout(0.5, deterministic=False)(x * scale), axis=1)


@pytest.fixture(scope="module")
def net():
    x = jax.random.normal(jax.random.key(2), (4, 3))
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return x, jax.jit(Net().init)(keys, x)


def net_loss(params, stats, x, key):
    out, new = Net().apply(
        {"params": params, "batch_stats": stats},
        *(x,),
        rngs={"dropout": key},
        mutable=["batch_stats"],
    )
    return jnp.mean((out - 1) ** 2), new["batch_stats"]


@pytest.mark.slow
def test_both_passes_drop_the_same_units(net):
    """One example: a dropped unit has no gradient."""
    x, variables = net
    params, stats = variables["params"], variables["batch_stats"]
    key = jax.random.key(3)

    def loss_fn(p):
        mask = nn.Dropout(0.5, deterministic=False)
        kept = mask.apply({}, p["scale"], rngs={"dropout": key})
        return jnp.sum((kept - 3) ** 2) + 0 * net_loss(p, stats, x, key)[0]

    clean = jax.grad(loss_fn)(params)
    updates, _ = SAM.update(clean, SAM.init(params), params, loss_fn=loss_fn)
    assert 0 < jnp.sum(clean["scale"] != 0) < 8
    assert jnp.any(updates["scale"] != clean["scale"])
    np.testing.assert_array_equal(updates["scale"] != 0, clean["scale"] != 0)


def test_batch_statistics_are_those_of_a_plain_step(net):
    x, variables = net

    @functools.partial(jax.jit, static_argnums=0)
    def step(tx, params, stats):
        def loss_and_stats(p):
            return net_loss(p, stats, x, jax.random.key(3))

        (_, new), grads = jax.value_and_grad(loss_and_stats, has_aux=True)(params)
        updates, _ = tx.update(
            grads, tx.init(params), params, loss_fn=lambda p: loss_and_stats(p)[0]
        )
        return updates, new

    plain = optax.with_extra_args_support(optax.identity())
    (sam_updates, sam_stats), (updates, stats) = (
        step(tx, variables["params"], variables["batch_stats"]) for tx in (SAM, plain)
    )
    chex.assert_trees_all_equal(sam_stats, stats)
    assert jnp.any(abs(sam_updates["scale"] - updates["scale"]) > 1e-3)


# Where optax.contrib.sam works, it gives the same


def test_updates_are_those_of_contrib_sam():
    ours = optax.chain(SAM, optax.sgd(0.1))
    theirs = optax.contrib.sam(
        optax.sgd(0.1),
        optax.chain(optax.contrib.normalize(), optax.sgd(RADIUS)),
        opaque_mode=True,
    )
    params = TREE

    def loss_fn(p):
        return jnp.sum(jnp.cos(p["w"])) * jnp.sin(p["b"][0])

    state, their_state = ours.init(params), theirs.init(params)
    for _ in range(3):
        grads = jax.grad(loss_fn)(params)
        updates, state = ours.update(grads, state, params, loss_fn=loss_fn)
        expected, their_state = theirs.update(
            grads, their_state, params, grad_fn=lambda p, _: jax.grad(loss_fn)(p)
        )
        chex.assert_trees_all_close(updates, expected, rtol=1e-5, atol=1e-6)
        params = optax.apply_updates(params, updates)
