"""Special cases that must equal simpler methods, and invariances."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax

import samo_jax

from three_heads import (
    COMBINERS,
    HEADS,
    MEAN,
    PERTURBATIONS,
    assert_close,
    batch,
    distance,
    first_direction,
    initial_params,
    losses_on,
    mean_grad,
    multitask,
    reference_direction,
    reference_update,
    samo,
)
from tiers import mostly_slow


@pytest.mark.parametrize("name", mostly_slow(PERTURBATIONS, but={"shared_probe"}))
def test_unroll_does_not_change_the_direction(name):
    unrolled, looped, chunked = (
        first_direction(
            multitask(MEAN, PERTURBATIONS[name], param_labels=HEADS, unroll=unroll)
        )
        for unroll in (True, False, 2)
    )
    assert_close(looped, unrolled)
    assert_close(chunked, unrolled)


@pytest.mark.parametrize(
    ("combiner", "perturbation"),
    mostly_slow(
        [
            (MEAN, samo_jax.joint_sam(0.0)),
            (COMBINERS["mgda"], samo_jax.global_sam(0.0)),
            (COMBINERS["fairgrad"], samo_jax.local_sam(0)),
        ],
        but=1,
        several=True,
    ),
    ids=["mean-joint", "mgda-global", "fairgrad-local"],
)
def test_zero_radius_is_the_plain_combiner(combiner, perturbation):
    perturbed = first_direction(multitask(combiner, perturbation, param_labels=HEADS))
    plain = first_direction(multitask(combiner, None, param_labels=HEADS))
    assert_close(perturbed, plain)


def test_mean_with_zero_radius_is_the_incoming_gradient():
    expected = mean_grad(initial_params(), batch(0))
    assert_close(first_direction(samo(rho=0.0, param_labels=None)), expected)


@pytest.mark.slow
def test_alpha_one_is_global_sam_whatever_the_key():
    expected = first_direction(
        multitask(MEAN, samo_jax.global_sam(0.3), param_labels=HEADS)
    )
    for key in (0, 1, None):
        assert_close(first_direction(samo(alpha=1.0, key=key)), expected)
    assert_close(reference_direction(alpha=jnp.float32(1.0)), expected)
    assert distance(reference_direction(), expected) > 0.01


def sum_losses(data):
    return lambda params: sum(losses_on(data)(params).values())


@pytest.mark.slow
def test_one_task_is_sam():
    params, rho = initial_params(), 0.3
    loss_fn = sum_losses(batch(0))
    tx = samo_jax.multitask(MEAN, samo_jax.global_sam(rho), num_tasks=1)
    grads = jax.grad(loss_fn)(params)
    updates, state = tx.update(grads, tx.init(params), params, loss_fn=loss_fn)
    expected = jax.grad(loss_fn)(
        optax.tree.add_scale(params, rho / optax.tree.norm(grads), grads)
    )
    assert_close(updates, expected)
    assert_close(optax.tree.get(state, "weights"), jnp.ones(1))


def test_one_task_trains_like_contrib_sam():
    loss_fn = sum_losses(batch(0))
    tx = optax.chain(
        samo_jax.multitask(MEAN, samo_jax.global_sam(0.3), num_tasks=1),
        optax.adam(1e-2),
    )
    sam = optax.contrib.sam(
        optax.adam(1e-2),
        optax.chain(optax.contrib.normalize(), optax.sgd(0.3)),
        opaque_mode=True,
    )

    def run(tx, **extra_args):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(
                jax.grad(loss_fn)(params), state, params, **extra_args
            )
            return (optax.apply_updates(params, updates), state), None

        carry = (initial_params(), tx.init(initial_params()))
        return jax.jit(lambda: lax.scan(step, carry, length=10))()[0][0]

    actual = run(tx, loss_fn=loss_fn)
    expected = run(sam, grad_fn=lambda params, _: jax.grad(loss_fn)(params))
    assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_key_decides_the_run():
    params, data = initial_params(), batch(0)

    def run(key):
        state, directions = samo(key=key).init(params), []
        for _ in range(3):
            grads = mean_grad(params, data)
            direction, state = reference_update(params, state, grads, data)
            directions.append(direction)
        return directions

    first, again, other = run(0), run(jax.random.key(0)), run(1)
    chex.assert_trees_all_equal(first, again)
    assert all(distance(a, b) > 1e-3 for a, b in zip(first, other, strict=True))
    # Fresh probes at every step, at unchanged params.
    assert distance(first[0], first[1]) > 1e-3


def test_scale_of_incoming_updates_does_not_matter():
    assert_close(reference_direction(scale=7.0), reference_direction(), rtol=1e-4)
