"""`weights_every`: weights of an older Gramian, and a length that follows gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import samo_jax

from tiers import mostly_slow

CENTRES = jnp.array([[1.0, 2.0], [-1.0, 0.5], [0.3, -2.0]])
NAMES = ["a", "b", "c"]
LABELS = {"w": "shared", "b": "b"}
ALPHA = 2.0
FAIRGRAD = samo_jax.fairgrad(ALPHA)
SHARED_PROBE = samo_jax.joint_sam(0.1, local=samo_jax.probe(shared=True))
START = {"w": jnp.array([0.5, -0.7]), "b": jnp.array(0.2)}


def losses_on(centres):
    def loss_fn(params):
        w = params["w"]
        a, b, c = (jnp.sum((w - centre) ** 2 * (1 + w**2)) for centre in centres)
        return {"a": a, "b": b + (params["b"] - 1) ** 2 * (1 + w[0] ** 2), "c": c}

    return loss_fn


LOSS_FN = losses_on(CENTRES)


def rows(params, loss_fn=LOSS_FN):
    found = [jax.grad(lambda p, n=n: loss_fn(p)[n])(params)["w"] for n in NAMES]
    return np.array(found)


def multitask(combiner=FAIRGRAD, perturbation=None, **kwargs):
    arguments = {"num_tasks": 3, "key": 0, "param_labels": LABELS, "weights_every": 4}
    return samo_jax.multitask(combiner, perturbation, **arguments | kwargs)


def stepper(tx):
    @jax.jit
    def step(params, state, centres=CENTRES, **extra_args):
        loss_fn = losses_on(centres)
        grads = samo_jax.mean_value_and_grad(loss_fn)(params)[1]
        return tx.update(grads, state, params, loss_fn=loss_fn, **extra_args)

    return step


def moved(params, direction):
    return jax.tree.map(lambda p, d: p - 0.05 * d, params, direction)


def test_steps_by_hand():
    """Weights of steps 0 and 4; in between, the length of degree -1/3."""
    step, params, state = stepper(multitask()), START, multitask().init(START)
    for number in range(8):
        direction, state = step(params, state)
        jacobian = rows(params)
        if number % 4 == 0:
            weights = samo_jax.fairgrad_weights(jacobian @ jacobian.T, alpha=ALPHA)
            length = np.linalg.norm(weights @ jacobian)
        raw = weights @ jacobian
        factor = (np.linalg.norm(raw) / length) ** (-1 / 3 - 1)
        np.testing.assert_allclose(state.weights, factor * weights, rtol=1e-4)
        np.testing.assert_allclose(direction["w"], factor * raw, rtol=1e-4, atol=1e-4)
        own = jax.grad(lambda p: LOSS_FN(p)["b"])(params)["b"]
        np.testing.assert_allclose(direction["b"], own, rtol=1e-5)
        assert state.kept.age == number % 4
        params = moved(params, direction)


@pytest.mark.slow
@pytest.mark.parametrize(
    "combiner",
    [FAIRGRAD, samo_jax.mgda(), samo_jax.nash_mtl(), samo_jax.normalized(FAIRGRAD)],
    ids=["fairgrad", "mgda", "nash_mtl", "normalized"],
)
def test_gradients_that_grow_alike_give_the_combiners_own_step(combiner):
    tx, exact = multitask(combiner), multitask(combiner, weights_every=None)

    def scaled(factor):
        return lambda params: jax.tree.map(lambda loss: factor * loss, LOSS_FN(params))

    def update(tx, state, factor):
        return tx.update(START, state, START, loss_fn=scaled(factor))

    _, state = update(tx, tx.init(START), 1.0)
    found, state = update(tx, state, 7.0)
    assert state.kept.age == 1
    wanted, of_exact = update(exact, exact.init(START), 7.0)
    np.testing.assert_allclose(found["w"], wanted["w"], rtol=1e-4)
    np.testing.assert_allclose(state.weights, of_exact.weights, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"perturbation": samo_jax.global_sam(0.1)},
        {"perturbation": SHARED_PROBE},
        {"unroll": False},
        {"gramian_block": 2},
        {"gramian_of": {"w": True, "b": False}},
    ],
    ids=lambda settings: ", ".join(settings),
)
def test_weights_of_one_step_are_those_of_every_step(settings):
    """Also in a scan, and with diagnostics."""
    once = multitask(weights_every=None, diagnostics=True, **settings)
    kept = multitask(weights_every=2, diagnostics=True, **settings)
    direction, state = stepper(kept)(START, kept.init(START))
    wanted, of_same = stepper(once)(START, once.init(START))
    chex.assert_trees_all_close(direction, wanted, rtol=1e-5)
    wanted = samo_jax.report(of_same, NAMES)
    found = samo_jax.report(state, NAMES)
    chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-6)

    def step(carry, _):
        params, state = carry
        direction, state = stepper(kept)(params, state)
        return (moved(params, direction), state), (direction, state.kept.age)

    (_, last), (directions, ages) = jax.lax.scan(
        step, (START, kept.init(START)), length=5
    )
    assert ages.tolist() == [0, 1, 0, 1, 0]
    chex.assert_trees_all_equal_shapes_and_dtypes(last, kept.init(START))
    again, _ = stepper(kept)(moved(START, direction), state)
    np.testing.assert_allclose(directions["w"][1], again["w"], rtol=1e-5)


@pytest.mark.parametrize("fault", mostly_slow(["mask", "NaN"], but={"NaN"}))
def test_a_task_that_is_absent_and_comes_back(fault):
    tx = multitask(weights_every=10)
    step, state = stepper(tx), tx.init(START)
    _, state = step(START, state)
    params = {"w": START["w"] + 0.1, "b": START["b"]}
    if fault == "mask":
        _, state = step(params, state, task_mask=jnp.array([True, False, True]))
    else:
        _, state = step(params, state, CENTRES.at[1].set(jnp.nan))
    others = rows(START)[[0, 2]]
    weights = samo_jax.fairgrad_weights(others @ others.T, alpha=ALPHA)
    ratio = state.weights[jnp.array([0, 2])] / weights
    np.testing.assert_allclose(ratio[0], ratio[1], rtol=1e-4)
    assert state.weights[1] == 0
    assert state.kept.age == 1
    assert state.skipped.tolist() == [0, 1, 0]
    # The weights of all three are still known.
    _, state = step(params, state)
    assert state.kept.age == 2
    assert jnp.all(state.weights > 0)


def test_a_new_task_takes_the_weights_at_once():
    tx = multitask(weights_every=10)
    step, state = stepper(tx), tx.init(START)
    _, state = step(START, state, task_mask=jnp.array([True, False, True]))
    _, state = step(START, state, task_mask=jnp.array([True, False, True]))
    assert state.kept.age == 1
    _, state = step(START, state)
    assert state.kept.age == 0
    jacobian = rows(START)
    weights = samo_jax.fairgrad_weights(jacobian @ jacobian.T, alpha=ALPHA)
    np.testing.assert_allclose(state.weights, weights, rtol=1e-4)


@pytest.mark.slow
def test_without_any_task_the_weights_wait():
    tx = multitask(weights_every=10)
    step, state = stepper(tx), tx.init(START)
    _, before = step(START, state)
    direction, state = step(START, before, task_mask=jnp.zeros(3, bool))
    assert not any(map(jnp.any, jax.tree.leaves(direction)))
    direction, state = step(START, state)
    np.testing.assert_allclose(state.weights, before.weights, rtol=1e-4)
    assert state.kept.age == 2


def test_passes_in_between_are_those_of_fixed_weights():
    counts = {"forward": 0, "backward": 0}

    def count(name):
        counts[name] += 1

    @jax.custom_vjp
    def counted(w):
        return w

    def forward(w):
        jax.debug.callback(lambda _: count("forward"), w)
        return w, None

    def backward(_, cotangent):
        jax.debug.callback(lambda _: count("backward"), cotangent)
        return (cotangent,)

    counted.defvjp(forward, backward)

    def loss_fn(params):
        return LOSS_FN(params | {"w": counted(params["w"])})

    tx = multitask(perturbation=samo_jax.global_sam(0.1), unroll=False)
    update = jax.jit(lambda state: tx.update(START, state, START, loss_fn=loss_fn)[1])
    state, backward_passes = tx.init(START), []
    for _ in range(5):
        before = counts["backward"]
        state = update(state)
        jax.effects_barrier()
        backward_passes.append(counts["backward"] - before)
    # One more for heads.
    assert backward_passes[0] == backward_passes[4] >= 3
    assert max(backward_passes[1:4]) <= 2


@pytest.mark.slow
def test_sharded_batches():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    examples = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3, 2)))

    def mean_losses(params, examples):
        losses = [losses_on(centres)(params) for centres in examples]
        return jax.tree.map(lambda *parts: sum(parts) / len(parts), *losses)

    def train(tx, examples):
        state, params = tx.init(START), START
        for _ in range(3):
            direction, state = tx.update(
                params,
                state,
                params,
                loss_fn=lambda params: mean_losses(params, examples),
            )
            params = moved(params, direction)
        return params, state.weights

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=P("data"), out_specs=P())
    def sharded(examples):
        return train(multitask(axis_name="data"), examples)

    expected = train(multitask(), examples)
    chex.assert_trees_all_close(sharded(examples), expected, rtol=1e-4)


def test_a_chain_learns_and_keeps_its_types():
    tx = optax.chain(
        multitask(perturbation=samo_jax.global_sam(0.05)), optax.adam(0.05)
    )
    step = stepper(tx)
    params, state = START, tx.init(START)
    for _ in range(100):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(START))
    before, after = (sum(LOSS_FN(p).values()) for p in (START, params))
    assert after < 0.95 * before
    assert optax.tree.get(state, "weights").shape == (3,)
