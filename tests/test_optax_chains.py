"""What may follow samo in a chain, and how often the loss is traced."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import samo_jax

from three_heads import (
    COMBINERS,
    HEADS,
    MEAN,
    NUM_TASKS,
    PERTURBATIONS,
    assert_close,
    assert_finite,
    average,
    batch,
    distance,
    first_direction,
    initial_params,
    jitted_update,
    losses_on,
    mean_grad,
    multitask,
    reference_direction,
    reference_update,
    samo,
    types,
)
from tiers import mostly_slow

# Transformations after samo: the chain is the composition of the two

TRUNK = {"trunk": True, "left": False, "right": False, "up": False}
AFTER = {
    "masked": optax.masked(
        optax.chain(optax.scale(3.0), optax.clip_by_global_norm(1.0)), TRUNK
    ),
    "partition": optax.partition(
        {"fast": optax.adam(1e-1), "frozen": optax.set_to_zero()},
        {"trunk": "fast", "left": "fast", "right": "frozen", "up": "frozen"},
    ),
    "clip": optax.clip_by_global_norm(0.1),
    "weight_decay": optax.add_decayed_weights(0.1, TRUNK),
    "flatten": optax.flatten(optax.adam(1e-2)),
    "polyak_sgd": optax.polyak_sgd(),
    "reduce_on_plateau": optax.contrib.reduce_on_plateau(),
    "apply_if_finite": optax.apply_if_finite(optax.sgd(0.1), 3),
}


FIRST = multitask(MEAN, samo_jax.global_sam(0.3), param_labels=HEADS)
FIRST_UPDATE = jitted_update(FIRST)


@pytest.mark.parametrize("after", mostly_slow(AFTER.values(), but=4), ids=AFTER)
def test_transformation_after_samo(after):
    tx = optax.chain(FIRST, after)
    params, data = initial_params(), batch(0)
    state: Any = tx.init(params)
    grads = mean_grad(params, data)
    updates, new_state = jitted_update(tx, value=2.0, foo="ignored")(
        params, state, grads, data
    )
    expected, first_state = FIRST_UPDATE(params, state[0], grads, data)
    expected, after_state = jax.jit(optax.with_extra_args_support(after).update)(
        expected, state[1], params, value=2.0
    )
    assert_close(updates, expected)
    assert_close(new_state, (first_state, after_state))
    assert types(new_state) == types(state)


def test_clipping_before_samo_changes_nothing():
    clip = optax.clip_by_global_norm(1e-3)
    assert_close(first_direction(optax.chain(clip, samo())), reference_direction())


@pytest.mark.parametrize(
    ("labels", "weights"),
    [
        pytest.param(None, [1 / 6, 5 / 6], id="without labels"),
        pytest.param({"encoder": "frozen", "adapter": "shared"}, 0.5, id="labelled"),
    ],
)
def test_leaves_frozen_by_partition_count_unless_labelled(labels, weights):
    """Orthogonal gradients, whose weights are inverse to their squared norms."""
    frozen = optax.partition(
        {"trained": optax.sgd(1.0), "frozen": optax.set_to_zero()},
        {"encoder": "frozen", "adapter": "trained"},
    )
    tx = optax.chain(
        samo_jax.multitask(samo_jax.mgda(), num_tasks=2, param_labels=labels), frozen
    )
    params = {"encoder": jnp.ones(()), "adapter": jnp.ones(2)}

    def loss_fn(params):
        return jnp.array([2.0, 0.0]) * params["encoder"] + params["adapter"]

    _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
    updates, state = tx.update(grads, tx.init(params), params, loss_fn=loss_fn)
    expected = jnp.broadcast_to(jnp.array(weights), (2,))
    assert_close(optax.tree.get(state, "weights"), expected)
    assert_close(updates, {"encoder": jnp.zeros(()), "adapter": -expected})


def test_unknown_extra_args_are_ignored():
    params, data = initial_params(), batch(0)
    state, grads = samo().init(params), mean_grad(params, data)
    updates, _ = jitted_update(samo(), value=2.0, foo="bar")(params, state, grads, data)
    assert_close(updates, reference_direction())


def micro_steps(tx):
    """Four micro-batches at params that only `tx` moves; the reference's directions."""
    params = initial_params()
    state, samo_state = tx.init(params), samo().init(params)
    update, directions = jitted_update(tx), []
    for seed in range(4):
        data = batch(seed)
        grads = mean_grad(params, data)
        direction, samo_state = reference_update(params, samo_state, grads, data)
        directions.append(direction)
        updates, state = update(params, state, grads, data)
        assert (optax.tree.norm(updates) > 0) == (seed == 3)
    return updates, state, directions


def test_multi_steps_after_samo_averages_the_directions():
    after = optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation()
    updates, state, directions = micro_steps(optax.chain(samo(), after))
    assert_close(updates, optax.tree.scale(-0.1, average(directions)))
    assert optax.tree.get(state, "step") == 4


def test_multi_steps_around_samo_perturbs_the_last_micro_batch_only():
    """The wrong order: it runs, but only the incoming gradient is accumulated."""
    tx = optax.MultiSteps(optax.chain(samo(), optax.sgd(0.1)), 4)
    updates, state, directions = micro_steps(tx.gradient_transformation())
    params, data = initial_params(), batch(3)
    grads = average([mean_grad(params, batch(seed)) for seed in range(4)])
    expected, _ = reference_update(params, samo().init(params), grads, data)
    assert_close(updates, optax.tree.scale(-0.1, expected))
    assert distance(expected, average(directions)) > 0.1
    assert optax.tree.get(state, "step") == 1


@pytest.mark.parametrize("order", mostly_slow(["after", "around"], but=1))
def test_apply_if_finite_has_nothing_to_catch(order):
    """Where every task is NaN, samo itself skips the step."""
    if order == "after":
        tx = optax.chain(samo(), optax.apply_if_finite(optax.sgd(0.1), 3))
    else:
        tx = optax.apply_if_finite(optax.chain(samo(), optax.sgd(0.1)), 3)
    params, (x, y) = initial_params(), batch(0)
    grads, update = mean_grad(params, (x, y)), jitted_update(tx)
    _, state = update(params, tx.init(params), grads, (x, y))
    for poison in (jnp.nan, jnp.inf):
        updates, skipped = update(params, state, grads, (x, poison * y))
        assert not any(leaf.any() for leaf in jax.tree.leaves(updates))
        assert optax.tree.get(skipped, "last_finite")
        assert optax.tree.get(skipped, "skipped").tolist() == NUM_TASKS * [1]
        updates, recovered = update(params, skipped, grads, (x, y))
        assert optax.tree.norm(updates) > 0
        assert_finite((updates, recovered))


def test_conditionally_transform_runs_samo_every_second_step():
    def even(step: Any, **_) -> Any:
        return step % 2 == 0

    tx = optax.conditionally_transform(samo(), even)
    params, data = initial_params(), batch(0)
    update, state, samo_state = jitted_update(tx), tx.init(params), samo().init(params)
    for step in range(4):
        grads = mean_grad(params, data)
        expected = grads
        if step % 2 == 0:
            expected, samo_state = reference_update(params, samo_state, grads, data)
        updates, new_state = update(params, state, grads, data)
        assert_close(updates, expected)
        assert types(new_state) == types(state)
        state = new_state
    assert optax.tree.get(state, "MultitaskState").step == 2


# How often loss_fn is traced

K = NUM_TASKS


def count_traces(combiner, perturbation, unroll):
    calls = []

    def loss_fn(params):
        calls.append(params)
        return losses_on(batch(0))(params)

    tx = multitask(combiner, perturbation, unroll=unroll)
    params = initial_params()
    jax.eval_shape(
        lambda p, s: tx.update(p, s, p, loss_fn=loss_fn), params, tx.init(params)
    )
    return len(calls)


@pytest.mark.parametrize(
    ("name", "unroll", "expected"),
    [
        pytest.param("joint_sam", True, 1 + 3 * K, id="joint-True"),
        pytest.param("joint_sam", False, 1 + 2 + 1, id="joint-False"),
        pytest.param("global_sam", True, 1 + K, id="global-True"),
        pytest.param("global_sam", False, 1 + 1, id="global-False"),
        pytest.param("local_sam", True, 1 + 2 * K, id="local-True"),
        pytest.param("local_sam", False, 1 + 2, id="local-False"),
        pytest.param("plain", True, 1 + K, id="plain-True"),
        pytest.param("plain", False, 1 + 1, id="plain-False"),
    ],
)
def test_number_of_traces(name, unroll, expected):
    assert count_traces(COMBINERS["mgda"], PERTURBATIONS[name], unroll) == expected


@pytest.mark.parametrize("unroll", [True, False])
@pytest.mark.parametrize("name", ["plain", "global_sam"])
def test_linear_combiners_trace_the_loss_once(name, unroll):
    assert count_traces(MEAN, PERTURBATIONS[name], unroll) == 1 + 1


@pytest.mark.parametrize("combiner", COMBINERS.values(), ids=COMBINERS)
def test_combiner_does_not_trace_the_loss(combiner):
    assert count_traces(combiner, PERTURBATIONS["joint_sam"], True) == 1 + 3 * K
