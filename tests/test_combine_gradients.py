"""`combine_gradients`: what `multitask` does, with gradients that are there already."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samo_jax

from three_heads import types
from tiers import mostly_slow

TASKS = ("a", "b", "c")
RNG = np.random.default_rng(0)
PARAMS = {
    "body": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32),
    "bias": jnp.asarray(RNG.normal(size=4), jnp.float32),
    "a": jnp.ones(2),
    "b": jnp.ones(3),
}
LABELS = {"body": "shared", "bias": "shared", "a": "a", "b": "b"}
INDICES = {"body": "shared", "bias": "shared", "a": 0, "b": 1}
REGISTRY = samo_jax.COMBINERS


def stacked(seed, dtype=jnp.float32):
    """Gradients of which only the own task's head has any."""
    rng = np.random.default_rng(seed)
    rows = {name: rng.normal(size=(3, *x.shape)) for name, x in PARAMS.items()}
    for name in ("a", "b"):
        rows[name][[task != name for task in TASKS]] = 0
    return jax.tree.map(partial(jnp.asarray, dtype=dtype), rows)


def linear_losses(rows, params):
    """Losses with these gradients, positive."""

    def loss(i, task):
        own = {name for name in PARAMS if LABELS[name] in ("shared", task)}
        return 20 + sum(jnp.sum(rows[name][i] * params[name]) for name in sorted(own))

    return {task: loss(i, task) for i, task in enumerate(TASKS)}


def arguments(name):
    """A combiner, and how many further samples of the gradients it needs."""
    combiner = REGISTRY[name].make(3, jax.random.key(1))
    return combiner, {"modo": 1, "sdmgrad": 2}.get(name, 0)


def ours(combiner, labels=LABELS):
    return samo_jax.combine_gradients(combiner, num_tasks=3, param_labels=labels)


@pytest.mark.parametrize("name", mostly_slow(REGISTRY, but={"graddrop"}))
def test_equals_multitask(name):
    """Exactly, in several steps, with absent tasks, in direction and state."""
    combiner, num_samples = arguments(name)
    others = samo_jax.multitask(combiner, num_tasks=3, param_labels=LABELS)
    tx = ours(combiner)
    state, other_state = tx.init(PARAMS), others.init(PARAMS)
    assert types(state) == types(other_state)
    for step in range(3):
        rows = stacked(step)
        samples = [stacked(10 + step + i) for i in range(num_samples)]
        mask = jnp.arange(3) != (0 if step == 1 else 5)
        losses = linear_losses(rows, PARAMS)
        direction, state = jax.jit(tx.update)(
            rows, state, losses=losses, task_mask=mask, sample_grads=samples
        )
        mean_grad = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), rows)
        expected, other_state = others.update(
            mean_grad,
            other_state,
            PARAMS,
            loss_fn=partial(linear_losses, rows),
            sample_loss_fns=[partial(linear_losses, sample) for sample in samples],
            task_mask=mask,
            losses=losses,
        )
        found, wanted = (direction, state), (expected, other_state)
        assert types(found) == types(wanted)
        close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
        jax.tree.map(close, found, wanted)


@pytest.mark.parametrize("labels", [LABELS, INDICES, lambda _: INDICES])
def test_heads_get_their_rows(labels):
    rows = stacked(0)
    tx = ours(samo_jax.mean(), labels)
    losses = linear_losses(rows, PARAMS)
    direction, state = tx.update(rows, tx.init(PARAMS), losses=losses)
    np.testing.assert_array_equal(direction["a"], rows["a"][0])
    np.testing.assert_array_equal(direction["b"], rows["b"][1])
    np.testing.assert_allclose(direction["body"], rows["body"].mean(0), rtol=1e-6)
    np.testing.assert_allclose(state.weights, np.full(3, 1 / 3), rtol=1e-6)


@pytest.mark.slow
def test_equals_the_pure_functions():
    rows = {name: stacked(0)[name] for name in ("body", "bias")}
    params = {name: PARAMS[name] for name in rows}
    weighting = samo_jax.fairgrad()
    weights, _ = weighting.update(samo_jax.gramian(rows), weighting.init(3))
    expected = samo_jax.combine(weights, rows)
    tx = ours(weighting, None)
    direction, _ = tx.update(rows, tx.init(params))
    jax.tree.map(np.testing.assert_array_equal, direction, expected)


@pytest.mark.parametrize("fault", ["NaN gradient", "infinite loss", "mask"])
def test_faulty_tasks_are_absent(fault):
    rows, losses, mask = stacked(0), [1.0, 2.0, 3.0], [True, True, True]
    if fault == "NaN gradient":
        rows["bias"] = rows["bias"].at[1, 0].set(jnp.nan)
    elif fault == "infinite loss":
        losses[1] = jnp.inf
    else:
        mask[1] = False
    tx = ours(samo_jax.mgda(), INDICES)
    direction, state = jax.jit(tx.update)(
        rows, tx.init(PARAMS), losses=losses, task_mask=mask
    )
    shared = {name: rows[name][jnp.array([0, 2])] for name in ("body", "bias")}
    weights = samo_jax.mgda_weights(samo_jax.gramian(shared))
    np.testing.assert_allclose(state.weights[jnp.array([0, 2])], weights, rtol=1e-5)
    np.testing.assert_array_equal(state.skipped, [0, 1, 0])
    assert not np.any(direction["b"])
    assert np.any(direction["a"])


def test_without_tasks_the_step_is_skipped():
    tx = ours(samo_jax.gradvac(0), INDICES)
    state = tx.init(PARAMS)
    rows = jax.tree.map(lambda leaf: leaf * jnp.nan, stacked(0))
    direction, after = tx.update(rows, state)
    assert not any(map(np.any, jax.tree.leaves(direction)))
    jax.tree.map(np.testing.assert_array_equal, after.combiner_state, state[3])


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        [name for name, entry in REGISTRY.items() if entry.family != "losses"],
        but={"mgda", "trimmed_mean"},
    ),
)
def test_losses_are_needed_by_those_who_say_so(name):
    combiner, num_samples = arguments(name)
    tx = ours(combiner, INDICES)
    samples = [stacked(10 + i) for i in range(num_samples)]
    update = partial(tx.update, stacked(0), tx.init(PARAMS), sample_grads=samples)
    if "losses" in REGISTRY[name].needs:
        with pytest.raises(ValueError, match="`losses` is required"):
            update()
    else:
        direction, _ = update()
        expected, _ = update(losses=[1.0, 2.0, 3.0])
        jax.tree.map(np.testing.assert_array_equal, direction, expected)


def test_in_a_chain_under_scan_and_vmap():
    tx = optax.chain(ours(samo_jax.moco(), INDICES), optax.adam(0.1))

    def train(seed):
        key = jax.random.key(seed)

        def step(carry, i):
            params, state = carry
            noise = jax.random.normal(jax.random.fold_in(key, i), 3)
            rows = jax.tree.map(lambda leaf: leaf * noise.mean(), stacked(0))
            updates, state = tx.update(rows, state, params, losses=jnp.abs(noise))
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), jnp.arange(5))[0]

    (params, state) = jax.jit(jax.vmap(train))(jnp.arange(2))
    assert types(train(0)) == types((PARAMS, tx.init(PARAMS)))
    assert params["body"].shape == (2, 3, 2)
    np.testing.assert_array_equal(state[0].step, [5, 5])


def test_bfloat16_rows_are_summed_in_float32():
    rows, rows32 = (
        stacked(0, jnp.bfloat16),
        jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stacked(0, jnp.bfloat16)),
    )
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    tx = ours(samo_jax.mgda(), INDICES)
    direction, state = tx.update(rows, tx.init(params))
    _, exact = tx.update(rows32, tx.init(PARAMS))
    assert direction["body"].dtype == jnp.bfloat16
    np.testing.assert_allclose(state.weights, exact.weights, rtol=1e-5)


def test_as_an_aggregator_of_optax():
    experimental = pytest.importorskip("optax.experimental")
    aggregator = ours(samo_jax.upgrad(), INDICES)
    tx = experimental.aggregating.process(
        optax.with_extra_args_support(optax.identity()),
        experimental.aggregating.Aggregator(*aggregator),
        optax.with_extra_args_support(optax.adam(0.1)),
    )
    chain = optax.chain(aggregator, optax.adam(0.1))
    args = {"losses": [1.0, 2.0, 3.0], "task_mask": [True, False, True]}
    found, state = tx.update(stacked(0), tx.init(PARAMS), PARAMS, **args)
    expected, _ = chain.update(stacked(0), chain.init(PARAMS), PARAMS, **args)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found, expected)
    assert optax.tree.get(state, "skipped").tolist() == [0, 1, 0]
