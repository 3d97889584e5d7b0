"""Per-group combination against one weighting per group by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samo_jax

from three_heads import (
    HEADS,
    batch,
    initial_params,
    jitted_update,
    mean_grad,
    multitask,
    types,
)
from tiers import mostly_slow

PARAMS = {"a": jnp.zeros((2, 3)), "b": {"c": jnp.zeros(4), "d": jnp.zeros(5)}}
GROUPS = {"a": "first", "b": {"c": "first", "d": "last"}}
LOSSES = jnp.array([1.0, 2.0, 0.5])


def gradients(seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=(3, *leaf.shape)), jnp.float32), PARAMS
    )


def by_hand(weighting, task_grads):
    products = samo_jax.gramian(task_grads)
    weights, _ = weighting.update(products, weighting.init(3), losses=LOSSES)
    return weights, samo_jax.combine(weights, task_grads)


def run(combiner, task_grads):
    return combiner.update(task_grads, combiner.init(PARAMS, 3), losses=LOSSES)


@pytest.mark.parametrize(
    "weighting",
    mostly_slow(
        [samo_jax.gradvac(0), samo_jax.mgda("loss"), samo_jax.fairgrad(2.0)], but=1
    ),
    ids=["gradvac", "mgda", "fairgrad"],
)
@pytest.mark.parametrize("as_function", mostly_slow([True, False], but={False}))
def test_a_weighting_for_every_group(weighting, as_function):
    task_grads = gradients()
    groups = (lambda _: GROUPS) if as_function else GROUPS
    direction, average, state = run(samo_jax.grouped(weighting, groups), task_grads)
    rest = {"a": task_grads["a"], "b": {"c": task_grads["b"]["c"]}}
    first, first_direction = by_hand(weighting, rest)
    last, last_direction = by_hand(weighting, task_grads["b"]["d"])
    first_direction["b"]["d"] = last_direction
    chex.assert_trees_all_close(direction, first_direction, rtol=1e-5)
    chex.assert_trees_all_close(
        state.weights, {"first": first, "last": last}, rtol=1e-5
    )
    np.testing.assert_allclose(average, (first + last) / 2, rtol=1e-5)


@pytest.mark.slow
def test_every_leaf_is_a_group_by_default():
    task_grads = gradients()
    weighting = samo_jax.upgrad()
    direction, _, state = run(samo_jax.grouped(weighting), task_grads)
    assert list(state.weights) == ["a", "b/c", "b/d"]
    chex.assert_trees_all_close(
        direction, jax.tree.map(lambda leaf: by_hand(weighting, leaf)[1], task_grads)
    )


@pytest.mark.slow
def test_a_weighting_of_its_own_for_each_group():
    task_grads = gradients()
    mean, mgda = samo_jax.mean(), samo_jax.mgda()
    combiner = samo_jax.grouped({"first": mean, "last": mgda}, GROUPS)
    direction, _, _ = run(combiner, task_grads)
    chex.assert_trees_all_close(
        direction["b"],
        {
            "c": jnp.mean(task_grads["b"]["c"], axis=0),
            "d": by_hand(mgda, task_grads["b"]["d"])[1],
        },
        rtol=1e-6,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("strict")
def test_inside_multitask():
    combiner = samo_jax.grouped(samo_jax.gradvac(0))
    tx = multitask(combiner, samo_jax.global_sam(0.1), param_labels=HEADS)
    params = initial_params()
    state = tx.init(params)
    update = jitted_update(tx)
    for seed in range(3):
        data = batch(seed)
        before = types(state)
        direction, state = update(params, state, mean_grad(params, data), data)
        chex.assert_trees_all_equal(types(state), before)
        params = optax.apply_updates(params, optax.tree.scale(-0.05, direction))
    assert update._cache_size() == 1
    one_group = multitask(
        samo_jax.gradvac(0), samo_jax.global_sam(0.1), param_labels=HEADS
    )
    start, data = initial_params(), batch(0)
    chex.assert_trees_all_close(
        *(
            jitted_update(tx)(start, tx.init(start), mean_grad(start, data), data)[0]
            for tx in (tx, one_group)
        ),
        rtol=1e-5,
    )


def test_without_shared_leaves():
    combiner = samo_jax.grouped(samo_jax.mgda())
    state = combiner.init({"head": None}, 3)
    direction, weights, _ = combiner.update({"head": None}, state, losses=LOSSES)
    assert direction == {"head": None}
    np.testing.assert_allclose(weights, 1 / 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: samo_jax.grouped(samo_jax.mgda),
            "`weighting` must be a samo_jax.Weighting",
        ),
        (
            lambda: samo_jax.grouped({"a": samo_jax.mgda()}).init(PARAMS, 3),
            "`groups` names the group 'b/c', which `weighting` lacks: got 'a'",
        ),
        (
            lambda: samo_jax.grouped(samo_jax.mgda(), {"x": "y"}).init(PARAMS, 3),
            "`groups` must be a pytree prefix of the parameters",
        ),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
