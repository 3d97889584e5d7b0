"""What Optax expects of a transformation: types, tools, states."""

from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax import lax

import samo_jax

from three_heads import (
    COMBINERS,
    HEADS,
    MEAN,
    NUM_TASKS,
    PERTURBATIONS,
    assert_close,
    assert_finite,
    batch,
    first_direction,
    initial_params,
    jitted_update,
    losses_on,
    mean_grad,
    multitask,
    reference_direction,
    reference_update,
    samo,
    train_step,
    types,
)


@pytest.mark.slow
def test_chain_runs_eagerly_as_under_jit():
    tx = optax.chain(samo(), optax.adam(1e-2))
    step, params = train_step(tx, batch(0)), initial_params()
    assert_close(step(params, tx.init(params)), jax.jit(step)(params, tx.init(params)))


def test_hundred_steps_compile_once_and_equal_scan():
    tx = optax.chain(samo(COMBINERS["fairgrad"], 0.05), optax.adam(1e-2))
    params, data = initial_params(), batch(0)
    step: Any = jax.jit(chex.assert_max_traces(train_step(tx, data), n=1))
    carry = (params, tx.init(params))
    for _ in range(100):
        carry = step(*carry)
    assert step._cache_size() == 1

    @jax.jit
    def scan(carry):
        step = train_step(tx, data)
        return lax.scan(lambda c, _: (step(*c), None), carry, length=100)[0]

    scanned = scan((params, tx.init(params)))
    assert_close(scanned[0], carry[0], rtol=1e-3, atol=1e-4)
    assert optax.tree.get(scanned[1], "step") == 100
    before, after = (sum(losses_on(data)(p).values()) for p in (params, carry[0]))
    assert after < 0.5 * before


def test_bfloat16_state_passes_through_cond():
    tx = optax.chain(samo(COMBINERS["fairgrad"]), optax.adam(1e-2))
    params, data = initial_params("bfloat16"), batch(0, "bfloat16")
    state = tx.init(params)

    @jax.jit
    def maybe_update(flag, params, state):
        return lax.cond(flag, train_step(tx, data), lambda p, s: (p, s), params, state)

    for flag in (True, False):
        after = maybe_update(flag, params, state)
        assert types(after) == types((params, state))
        assert_finite(after)


@pytest.mark.parametrize(
    ("combiner", "perturbation"),
    [
        *((combiner, PERTURBATIONS["joint_sam"]) for combiner in COMBINERS.values()),
        *((MEAN, PERTURBATIONS[name]) for name in ("plain", "global_sam", "local_sam")),
    ],
    ids=["mean-joint", "mgda-joint", "fairgrad-joint", "plain", "global", "local"],
)
def test_zero_gradient_gives_zero_and_no_nan(combiner, perturbation):
    tx = multitask(combiner, perturbation)
    params = jnp.ones(4)
    state = tx.init(params)
    updates, new_state = jax.jit(
        lambda p, s: tx.update(
            jnp.zeros(4), s, p, loss_fn=lambda p: 0 * p[:NUM_TASKS] + 1
        )
    )(params, state)
    assert not updates.any()
    assert_finite(new_state)
    assert types(new_state) == types(state)


def test_raw_key_and_key_reuse_checks():
    tx = samo(key=jax.random.PRNGKey(0))
    params, data = initial_params(), batch(0)
    grads = mean_grad(params, data)
    with jax.debug_key_reuse(True):
        updates, state = jitted_update(tx)(params, tx.init(params), grads, data)
    assert_close(updates, reference_direction())
    assert types(state) == types(tx.init(params))


def test_every_step_draws_anew():
    params, data = initial_params(), batch(0)
    grads, update = mean_grad(params, data), jitted_update(samo())
    first, state = update(params, samo().init(params), grads, data)
    second, _ = update(params, state, grads, data)
    assert jnp.any(first["trunk"] != second["trunk"])


# Optax's tools for states and hyperparameters, and who else calls update


def test_tree_get_and_set_find_the_state():
    tx = optax.chain(samo(), optax.adam(1e-2))
    state: Any = tx.init(initial_params())
    assert_close(optax.tree.get(state, "weights"), jnp.full(NUM_TASKS, 1 / NUM_TASKS))
    assert optax.tree.get(state, "step") == 0
    assert optax.tree.get(state, "MultitaskState") is state[0]
    assert optax.tree.get(optax.tree.set(state, step=7), "step") == 7


def test_tree_map_params_leaves_the_state_alone():
    tx = optax.chain(samo(), optax.trace(0.9))
    state: Any = tx.init(initial_params())
    shifted: Any = optax.tree.map_params(tx.init, lambda leaf: leaf + 1, state)
    assert_close(shifted[0], state[0])
    assert_close(shifted[1].trace, optax.tree.ones_like(initial_params()))


SCHEDULES = {
    "rho": optax.linear_schedule(0.5, 0.01, 4),
    "alpha": optax.linear_schedule(0.0, 0.9, 4),
    "mu": optax.linear_schedule(1.0, 1e-3, 4),
}


@pytest.mark.parametrize("injected", [False, True], ids=["direct", "injected"])
def test_schedules_are_their_values_at_each_step(injected):
    factory = samo_jax.samo
    if injected:
        factory = optax.inject_hyperparams(factory, static_args=("num_tasks",))
    tx = factory(
        MEAN,
        **SCHEDULES,
        num_tasks=NUM_TASKS,
        key=jax.random.key(0),
        param_labels=HEADS,
        unroll=False,
    )
    params, data = initial_params(), batch(0)
    update, state, plain_state = jitted_update(tx), tx.init(params), samo().init(params)
    for step in range(3):
        values = {name: schedule(step) for name, schedule in SCHEDULES.items()}
        grads = mean_grad(params, data)
        expected, plain_state = reference_update(
            params, plain_state, grads, data, **values
        )
        updates, state = update(params, state, grads, data)
        assert_close(updates, expected)
        assert optax.tree.get(state, "step") == step + 1


@pytest.mark.parametrize("perturbation", [samo_jax.global_sam, samo_jax.local_sam])
def test_radius_schedule_of_other_perturbations(perturbation):
    schedule = optax.piecewise_constant_schedule(0.3, {1: 0.5})
    params, data = initial_params(), batch(0)
    grads = mean_grad(params, data)

    @jax.jit
    def both(rho, state):
        scheduled, constant = (
            multitask(MEAN, perturbation(value)).update(
                grads, state, params, loss_fn=losses_on(data)
            )
            for value in (schedule, rho)
        )
        return scheduled, constant

    state = multitask(MEAN, None).init(params)
    for rho in (0.3, 0.15, 0.15):
        scheduled, constant = both(rho, state)
        assert_close(scheduled, constant)
        state = scheduled[1]


def test_injected_values_set_by_hand_do_not_recompile():
    tx = optax.inject_hyperparams(
        samo_jax.samo, static_args=("num_tasks", "key", "unroll")
    )(MEAN, num_tasks=NUM_TASKS, key=0, param_labels=HEADS, unroll=False)
    params, data = initial_params(), batch(0)
    update = jitted_update(tx)
    for rho in (0.3, 0.0):
        state: Any = tx.init(params)
        state.hyperparams["rho"] = jnp.full_like(state.hyperparams["rho"], rho)
        updates, new_state = update(params, state, mean_grad(params, data), data)
        assert_close(updates, reference_direction(rho=rho))
        assert types(new_state) == types(state)
    assert update._cache_size() == 1


def test_inject_hyperparams_around_multitask():
    tx = optax.inject_hyperparams(samo_jax.multitask, static_args=("num_tasks",))(
        MEAN, samo_jax.global_sam(0.3), num_tasks=NUM_TASKS, param_labels=HEADS
    )
    direct = multitask(MEAN, samo_jax.global_sam(0.3), param_labels=HEADS)
    assert_close(first_direction(tx), first_direction(direct))


def test_nnx_optimizer_forwards_the_loss():
    tx = optax.chain(multitask(MEAN, samo_jax.local_sam(0.3)), optax.sgd(0.1))
    x, y = batch(0)
    model = nnx.Linear(3, NUM_TASKS, use_bias=False, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    def loss_fn(kernel):
        return jnp.mean(jnp.square((x @ kernel).T - y), axis=1)

    @jax.jit
    def plain_update(params):
        grads = samo_jax.mean_value_and_grad(loss_fn)(params)[1]
        return tx.update(grads, tx.init(params), params, loss_fn=loss_fn)[0]

    @nnx.jit
    def nnx_step(model, optimizer):
        def on_params(params):
            return loss_fn(params["kernel"][...])

        params = nnx.state(model, nnx.Param)
        grads = samo_jax.mean_value_and_grad(on_params)(params)[1]
        optimizer.update(model, grads, loss_fn=on_params)

    expected = model.kernel[...] + plain_update(model.kernel[...])
    nnx_step(model, optimizer)
    assert_close(model.kernel[...], expected)


def test_equinox_partition_leaves_static_leaves_out():
    """`None` leaves, as `equinox.partition` makes them."""
    tx = multitask(MEAN, samo_jax.joint_sam(0.3))
    model = eqx.nn.Linear(3, NUM_TASKS, use_bias=False, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    x, y = batch(0)

    def loss_fn(params):
        predictions = jax.vmap(eqx.combine(params, static))(x)
        return jnp.mean(jnp.square(predictions.T - y), axis=1)

    @jax.jit
    def update(params, state):
        grads = samo_jax.mean_value_and_grad(loss_fn)(params)[1]
        return tx.update(grads, state, params, loss_fn=loss_fn)

    state = tx.init(params)
    updates, new_state = update(params, state)
    assert types((updates, new_state)) == types((params, state))
    assert_finite((updates, new_state))


def test_donated_state_leaves_the_key_alone(key):
    tx = samo(key=key)
    params, data = initial_params(), batch(0)
    update = jax.jit(
        lambda state: tx.update(params, state, params, loss_fn=losses_on(data)),
        donate_argnums=0,
    )
    for _ in range(2):
        update(tx.init(params))
    jax.random.normal(key)
