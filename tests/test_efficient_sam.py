"""Efficient SAM: what its mask and its choice of examples are."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samo_jax

from sharpness import (
    LABELS,
    TASKS,
    add,
    batch,
    descend,
    example_losses,
    gradients,
    initial_params,
    multitask,
    norm_groups,
    perturb,
    scale,
    single_task,
    total_examples,
    update,
)
from tiers import mostly_slow

NAMES = tuple(LABELS)
SIZE = 8


def problem(params, grads, key):
    return samo_jax.Problem(
        *(None, None, (), params, grads, dict.fromkeys(NAMES, "shared"), ("0",)),
        *(jnp.zeros((), jnp.int32), key, {}, True),
    )


@functools.partial(jax.jit, static_argnums=0)
def draw(method, keys):
    """eps for many keys, and SAM's."""
    params, grads = initial_params(), jax.tree.map(jnp.cos, initial_params())

    def eps(method, key):
        context = method.prepare(problem(params, grads, key), ())
        return method.perturb(context, 0)

    return jax.vmap(lambda key: eps(method, key))(keys), eps(samo_jax.sam(0.3), None)


@pytest.mark.parametrize("beta", mostly_slow([0.5, 0.8], but=1))
def test_mask_is_bernoulli_for_every_parameter_and_unbiased(beta, key):
    draws = 4000
    eps, sam = draw(samo_jax.efficient_sam(0.3, beta), jax.random.split(key, draws))
    flat, dense = (
        np.concatenate([tree[n].reshape(*lead, -1) for n in NAMES], axis=-1)
        for tree, lead in ((eps, (draws,)), (sam, ()))
    )
    kept = flat != 0
    expected = np.broadcast_to(dense / beta, flat.shape)
    np.testing.assert_allclose(flat[kept], expected[kept], rtol=1e-5)
    error = np.sqrt(beta * (1 - beta) / draws)
    assert np.all(abs(kept.mean(0) - beta) < 5 * error)
    np.testing.assert_array_less(
        abs(flat.mean(0) - dense), 6 * error * abs(dense) / beta
    )
    # Parameters are kept or dropped on their own, not together.
    correlation = np.corrcoef(kept.T) - np.eye(len(dense))
    assert np.all(abs(correlation) < 6 / np.sqrt(draws))


def chosen_gradient(w, eps, data, count, task):
    """The gradient of one task over the examples whose loss grows most."""
    x, y = data
    point = add(w, eps)
    growth = losses_by_hand(point, data)[task] - losses_by_hand(w, data)[task]
    best = np.argsort(-growth)[:count]
    return gradients(point, (x[best], y[best]))[task]


def losses_by_hand(w, data):
    return [np.asarray(losses) for losses in example_losses(w, data).values()]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("gamma", "count"),
    mostly_slow([(0.01, 1), (0.5, 4), (0.3, 2), (1.0, 8)], but=1, several=True),
)
def test_takes_the_examples_whose_loss_grows_most(gamma, count):
    params, data = initial_params("float64"), batch(3, "float64", SIZE)
    method = samo_jax.efficient_sam(0.3, 1.0, gamma, direction="local")
    tx = multitask(method)
    actual, _ = update(tx, params, tx.init(params), data)
    clean = gradients(params, data)
    for i, head in enumerate(TASKS):
        eps = perturb(
            lambda _, p: scale(p, 0.3 / np.sqrt(sum(np.sum(x**2) for x in p.values()))),
            *(params, clean[i], norm_groups("separate", head)),
        )
        expected = chosen_gradient(params, eps, data, count, i)
        chex.assert_trees_all_close(actual[head], expected[head], rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_one_task_with_random_weights():
    """All of the update, for the mask that its key gives."""
    params, data = initial_params("float64"), batch(4, "float64", SIZE)
    method = samo_jax.efficient_sam(0.3, 0.5, 0.5)
    tx = single_task(method)
    state = tx.init(params)
    grads = jax.grad(lambda p: jnp.mean(total_examples(p, data)))(params)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    eps = method.perturb(method.prepare(problem(params, grads, key), ()), 0)
    point = add(params, eps)
    growth = total_examples(point, data) - total_examples(params, data)
    best = np.argsort(-growth)[: SIZE // 2]
    expected = add(*gradients(point, tuple(array[best] for array in data)))
    actual, state = update(tx, params, state, data, total_examples)
    chex.assert_trees_all_close(actual, expected, rtol=1e-9)
    other, _ = update(tx, params, state, data, total_examples)
    assert np.any(abs(other["kernel"] - actual["kernel"]) > 1e-3)  # a new mask


@pytest.mark.slow
def test_unroll():
    looped, unrolled = (
        descend(
            multitask(samo_jax.efficient_sam(0.3), unroll=unroll),
            steps=1,
            compiled=unroll is not True,
        )
        for unroll in (False, True)
    )
    chex.assert_trees_all_close(looped, unrolled, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("missing", ["example_losses", "example_loss_fn"])
def test_missing_argument(missing):
    params, data = initial_params(), batch(0)
    tx = single_task(samo_jax.efficient_sam())
    arguments = {
        "example_losses": total_examples(params, data),
        "example_loss_fn": lambda p, _index: total_examples(p, data),
    }
    del arguments[missing]
    with pytest.raises(ValueError, match=f"`{missing}` is required by efficient_sam"):
        tx.update(
            params,
            tx.init(params),
            params,
            loss_fn=lambda p: jnp.mean(total_examples(p, data)),
            **arguments,
        )


@pytest.mark.parametrize(
    "losses",
    [
        jnp.zeros(3),  # means, not examples
        jnp.zeros((3, 6)),  # one array
        {"left": jnp.zeros(6), "right": jnp.zeros(6)},
    ],
    ids=["scalars", "array", "two of three"],
)
def test_wrong_example_losses(losses):
    params, data = initial_params(), batch(0)
    tx = multitask(samo_jax.efficient_sam())
    with pytest.raises(ValueError, match="`example_losses` must be a pytree of 3"):
        tx.update(
            params,
            tx.init(params),
            params,
            loss_fn=lambda p: jax.tree.map(jnp.mean, example_losses(p, data)),
            example_losses=losses,
            example_loss_fn=lambda p, _index: example_losses(p, data),
        )
