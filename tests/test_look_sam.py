"""LookSAM against its equations, its special cases, its cost and its errors."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import samo_jax

from sharpness import (
    LABELS,
    RADIUS,
    SHARED,
    TASKS,
    add,
    batch,
    descend,
    descend_by_hand,
    descend_on_total,
    gradients,
    initial_params,
    inner_product,
    keep,
    multitask,
    norm,
    norm_groups,
    perturb,
    scale,
    single_task,
    total_gradient,
    total_loss,
    update,
)
from tiers import mostly_slow

# Compiled, for eager control flow compiles at every step.
descend = functools.partial(descend, compiled=True)
descend_on_total = functools.partial(descend_on_total, compiled=True)
assert_close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-6)
SAM = single_task(samo_jax.sam(RADIUS))
G_SAM = multitask(samo_jax.global_sam(RADIUS))
K = {"num_tasks": 3, "param_labels": LABELS}


def sam(w, p):
    del w
    return scale(p, RADIUS / norm(p))


def sam_gradient(w, data):
    """The incoming gradient, and SAM's."""
    g = total_gradient(w, data)
    return g, total_gradient(add(w, sam(w, g)), data)


def global_sam_direction(w, data):
    """The mean gradient with every head's own, and the combined perturbed ones."""
    clean = gradients(w, data)
    mean = scale(add(*clean), 1 / 3)
    g, d = mean.copy(), {name: 0.0 for name in SHARED}
    for i, head in enumerate(TASKS):
        eps = perturb(sam, w, mean, norm_groups("separate", head))
        q = gradients(add(w, eps), data)[i]
        g[head], d[head] = clean[i][head], q[head]
        d = add(keep(d, SHARED), scale(keep(q, SHARED), 1 / 3)) | {
            name: leaf for name, leaf in d.items() if name in TASKS
        }
    return g, d


def look(inner, every, alpha, start=0):
    step, memory = 0, None

    def direction(w, data):
        nonlocal step, memory
        g, d = inner(w, data)
        looks = step >= start and (step - start) % every == 0
        step += 1
        if looks:
            rest = add(d, scale(g, -inner_product(d, g) / norm(g) ** 2))
            memory = scale(rest, 1 / norm(rest))
            return d
        return add(g, scale(memory, alpha * norm(g))) if memory else g

    return direction


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("every", "start"), mostly_slow([(3, 0), (2, 1)], but=[(2, 1)], several=True)
)
@pytest.mark.parametrize(
    ("descend", "tx", "inner", "kwargs"),
    [
        pytest.param(descend_on_total, SAM, sam_gradient, {}, id="one task"),
        pytest.param(descend, G_SAM, global_sam_direction, K, id="three tasks"),
    ],
)
def test_against_the_equations(descend, tx, inner, kwargs, every, start):
    actual = descend(
        samo_jax.look_sam(tx, every, 0.6, start=start, **kwargs), "float64", steps=6
    )
    expected = descend_by_hand(look(inner, every, 0.6, start), steps=6)
    chex.assert_trees_all_close(actual, expected, rtol=1e-8, atol=1e-10)


METHODS = {
    "samo": (samo_jax.joint_sam(RADIUS), samo_jax.mean()),
    "momentum": (samo_jax.momentum_sam(RADIUS), samo_jax.mean()),
    "friendly": (samo_jax.friendly_sam(RADIUS), samo_jax.mean()),
}


@pytest.mark.parametrize("name", mostly_slow(METHODS, but={"momentum"}))
def test_every_step_is_the_inner_transformation(name):
    inner = multitask(*METHODS[name])
    assert_close(descend(samo_jax.look_sam(inner, every=1, **K)), descend(inner))


def test_alpha_zero_is_sam_every_other_step():
    plain = samo_jax.multitask(samo_jax.mean(), num_tasks=1)
    alternating = descend_on_total(lambda step: plain if step % 2 else SAM)
    actual = descend_on_total(samo_jax.look_sam(SAM, every=2, alpha=0.0))
    assert_close(actual, alternating)


def test_alpha_follows_a_schedule():
    alphas = (0.0, 0.6)
    scheduled = samo_jax.look_sam(SAM, 3, lambda step: jnp.array(alphas)[step])
    two = [samo_jax.look_sam(SAM, 3, alpha) for alpha in alphas]
    assert_close(
        descend_on_total(scheduled, steps=2),
        descend_on_total(lambda step: two[step], steps=2),
    )


@pytest.mark.slow
def test_injected_alpha():
    @optax.inject_hyperparams
    def factory(alpha):
        return samo_jax.look_sam(SAM, 2, alpha)

    assert_close(
        descend_on_total(factory(0.4)),
        descend_on_total(samo_jax.look_sam(SAM, 2, 0.4)),
    )


def test_start_passes_the_gradient_on():
    plain = descend(multitask(None))
    late = descend(samo_jax.look_sam(G_SAM, every=1, start=2, **K))
    assert_close(late[:2], plain[:2])
    assert jnp.any(late[2]["kernel"] != plain[2]["kernel"])


def test_steps_in_between_do_not_run_the_inner_transformation():
    calls = []
    tx = samo_jax.look_sam(SAM, every=3)
    params, data = initial_params(), batch(0)

    def loss_fn(p):
        jax.debug.callback(lambda: calls.append("loss"))
        return total_loss(p, data)

    @jax.jit
    def step(state):
        grads = jax.grad(total_loss)(params, data)
        return tx.update(grads, state, params, loss_fn=loss_fn)[1]

    state, counts = tx.init(params), []
    for _ in range(4):
        state = step(state)
        jax.effects_barrier()
        counts.append(len(calls))
    assert counts[0] == counts[1] == counts[2] == counts[3] / 2 > 0


@pytest.mark.parametrize("dtype", mostly_slow(["float32", "bfloat16"], but=1))
def test_types_and_scan(dtype):
    tx = samo_jax.look_sam(multitask(*METHODS["samo"]), every=2, **K)
    params, data = initial_params(dtype), batch(0, dtype)

    def step(state, _):
        updates, state = update(tx, params, state, data)
        return state, updates

    state, updates = jax.jit(lambda state: lax.scan(step, state, length=3))(
        tx.init(params)
    )
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, tx.init(params))
    assert state.step == 3
    assert optax.tree.get(state.inner_state, "step") == 2
    assert {x.dtype for x in jax.tree.leaves(state.orthogonal)} == {jnp.float32.dtype}
    for name, leaf in updates.items():
        assert leaf.dtype == params[name].dtype
        assert jnp.isfinite(leaf).all()


def test_zero_gradient():
    tx = samo_jax.look_sam(SAM, every=2)
    params = jnp.ones(3)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(
            jnp.zeros(3), state, params, loss_fn=lambda p: 0 * jnp.sum(p)
        )
        np.testing.assert_array_equal(updates, 0)
    np.testing.assert_array_equal(state.orthogonal, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "`every` must be a positive int, got 0"),
        ({"every": 2.0}, "`every` must be a positive int, got 2.0"),
        ({"start": -1}, "`start` must be a non-negative int, got -1"),
        ({"alpha": -0.1}, "`alpha` must be non-negative and finite, got -0.1"),
        ({"alpha": float("nan")}, "`alpha` must be non-negative"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        samo_jax.look_sam(SAM, **arguments)
