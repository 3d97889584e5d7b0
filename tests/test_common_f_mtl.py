"""F-MTL with a common perturbation: `gramian_of` and `weights_every`."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import samo_jax

from sharpness import (
    LABELS,
    SHARED,
    TASKS,
    batch,
    descend,
    initial_params,
    task_losses,
    update,
)
from tiers import mostly_slow

ALPHA, RHO = 2.0, 0.3
FAIRGRAD = samo_jax.fairgrad(ALPHA)
ALL = dict.fromkeys(LABELS, True)


def f_mtl(combiner=FAIRGRAD, **kwargs):
    arguments = {"num_tasks": 3, "param_labels": LABELS, "direction": "global"}
    return samo_jax.f_mtl(combiner, RHO, **arguments | kwargs)


def rows(params, data):
    """The tasks' gradients by the shared leaves, shape (K, n), and by all."""

    def of_task(name):
        return jax.grad(lambda p: task_losses(p, data)[name])(params)

    found = [of_task(name) for name in TASKS]
    flat = [np.concatenate([np.ravel(row[n]) for n in SHARED]) for row in found]
    return np.array(flat), found


def both_rows(params, data):
    """Loss parts and flat parts, and the heads' own gradients at theta + eps."""
    loss_rows, found = rows(params, data)
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *found)

    def eps(names):
        length = optax.tree.norm({name: mean[name] for name in names})
        return {name: RHO * mean[name] / length for name in names}

    steps = eps(SHARED) | {k: v for name in TASKS for k, v in eps([name]).items()}
    point = jax.tree.map(jnp.add, params, steps)
    perturbed, found = rows(point, data)
    heads = {name: row[name] for name, row in zip(TASKS, found, strict=True)}
    return [loss_rows, perturbed - loss_rows], heads


def solve(matrix):
    return np.asarray(samo_jax.fairgrad_weights(matrix @ matrix.T, alpha=ALPHA))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("combiner", "settings"),
    mostly_slow(
        [
            (FAIRGRAD, {"weights_every": 1}),
            (FAIRGRAD, {"gramian_of": ALL}),
            (samo_jax.mgda(), {"gramian_of": ALL, "weights_every": 1}),
            (samo_jax.mgda(), {"weights_every": 1, "adaptive": True}),
            (samo_jax.upgrad(), {"weights_every": 1, "norm": "layerwise"}),
            (samo_jax.upgrad(), {"weights_every": 1, "unroll": False}),
        ],
        but=1,
        several=True,
    ),
)
def test_weights_of_every_step_are_those_of_k_gradients(combiner, settings):
    common = {"gramian_of": "parameters", "weights_every": None}
    chex.assert_trees_all_close(
        descend(f_mtl(combiner, **settings), "float64", steps=2),
        descend(f_mtl(combiner, **settings | common), "float64", steps=2),
        rtol=1e-9,
    )


@pytest.mark.usefixtures("x64")
def test_steps_by_hand():
    """Each part has the length of degree -1/3 in what it has grown."""
    tx, params = f_mtl(weights_every=2), initial_params("float64")
    state, step = tx.init(params), jax.jit(functools.partial(update, tx))
    for number in range(4):
        data = batch(number, "float64")
        parts, heads = both_rows(params, data)
        if number % 2 == 0:
            weights = [solve(part) for part in parts]
            lengths = [
                np.linalg.norm(w @ part) for w, part in zip(weights, parts, strict=True)
            ]
        raw = [w @ part for w, part in zip(weights, parts, strict=True)]
        factors = [
            (np.linalg.norm(d) / length) ** (-1 / 3 - 1)
            for d, length in zip(raw, lengths, strict=True)
        ]
        wanted = sum(by * d for by, d in zip(factors, raw, strict=True))
        direction, state = step(params, state, data)
        found = np.concatenate([np.ravel(direction[n]) for n in SHARED])
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        np.testing.assert_allclose(state.weights, factors[0] * weights[0], rtol=1e-6)
        flat = optax.tree.get(state, "flat_weights")
        np.testing.assert_allclose(flat, factors[1] * weights[1], rtol=1e-6)
        own = {name: direction[name] for name in TASKS}
        chex.assert_trees_all_close(own, heads, rtol=1e-9)
        assert optax.tree.get(state, "age") == number % 2
        params = jax.tree.map(lambda w, d: w - 0.1 * d, params, direction)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_representation_is_the_only_shared_leaf():
    """Then its gradients are those by parameters."""
    labels = {"z": "shared", "a": "a", "b": "b"}
    params = {"z": jnp.array([0.5, -1.0, 2.0]), "a": jnp.ones(3), "b": -jnp.ones(3)}

    def loss_fn(params):
        z = samo_jax.representation(params["z"])
        return {n: jnp.sum(jnp.tanh(params[n] * z) - 0.3) ** 2 for n in ("a", "b")}

    def direction(**settings):
        tx = samo_jax.f_mtl(
            FAIRGRAD, num_tasks=2, param_labels=labels, direction="global", **settings
        )
        return tx.update(params, tx.init(params), params, loss_fn=loss_fn)[0]

    chex.assert_trees_all_close(
        direction(gramian_of="representation", weights_every=1), direction(), rtol=1e-9
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("fault", mostly_slow(["mask", "NaN"], but={"NaN"}))
@pytest.mark.parametrize("number", mostly_slow([0, 1], but={1}))
def test_a_task_that_is_absent(fault, number):
    """Its weights are zero, the others' those of their Gramians."""
    tx, params = f_mtl(weights_every=10, diagnostics=True), initial_params("float64")
    state, data = tx.init(params), batch(0, "float64")
    for _ in range(number):
        _, state = update(tx, params, state, data)

    def loss_fn(p):
        losses = task_losses(p, data)
        factor = jnp.nan if fault == "NaN" else 1.0
        return losses | {"right": factor * losses["right"]}

    mask = {name: name != "right" for name in TASKS} if fault == "mask" else None
    direction, state = tx.update(params, state, params, loss_fn=loss_fn, task_mask=mask)
    assert state.weights[1] == state.combiner_state.flat_weights[1] == 0
    assert state.skipped.tolist() == [0, 1, 0]
    assert not jnp.any(direction["right"])
    assert jnp.all(jnp.isfinite(direction["kernel"]))
    assert state.kept.age == number
    if number == 0:
        names = ["left", "up"]
        two = samo_jax.f_mtl(
            FAIRGRAD,
            RHO,
            num_tasks=2,
            param_labels={k: v for k, v in LABELS.items() if k != "right"}
            | {"right": "frozen"},
            direction="global",
        )
        wanted, _ = two.update(
            params,
            two.init(params),
            params,
            loss_fn=lambda p: {name: task_losses(p, data)[name] for name in names},
        )
        chex.assert_trees_all_close(direction, wanted, rtol=1e-9)


def test_four_backward_passes_in_between():
    """Three at theta (one of them the mean gradient), one at theta + eps."""
    counts = []

    @jax.custom_vjp
    def counted(w):
        return w

    def backward(_, cotangent):
        jax.debug.callback(lambda _: counts.append(1), cotangent)
        return (cotangent,)

    counted.defvjp(lambda w: (w, None), backward)
    data = batch(0)

    def loss_fn(params):
        return task_losses(params | {"kernel": counted(params["kernel"])}, data)

    params = initial_params()
    tx = f_mtl(weights_every=3, unroll=False)
    step = jax.jit(lambda s: tx.update(params, s, params, loss_fn=loss_fn)[1])
    state, passes = tx.init(params), []
    for _ in range(4):
        counts.clear()
        state = step(state)
        jax.effects_barrier()
        passes.append(len(counts))
    # One more for heads.
    assert passes[0] == passes[3] >= 2 * 3
    assert max(passes[1:3]) <= 5


@pytest.mark.slow
def test_sharded_batches():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    examples = batch(0, size=16)

    def train(tx, data):
        params = initial_params()
        state = tx.init(params)
        for _ in range(3):
            direction, state = tx.update(
                params, state, params, loss_fn=lambda p: task_losses(p, data)
            )
            params = jax.tree.map(lambda w, d: w - 0.1 * d, params, direction)
        return params, state.weights

    for settings in ({}, {"gramian_of": "representation"}):

        @jax.jit
        @jax.shard_map(mesh=mesh, in_specs=P("data"), out_specs=P())
        def sharded(data, settings=settings):
            return train(f_mtl(weights_every=2, axis_name="data", **settings), data)

        expected = train(f_mtl(weights_every=2, **settings), examples)
        chex.assert_trees_all_close(sharded(examples), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("part", mostly_slow(["parameters", "representation"], but=1))
def test_a_chain_learns_in_a_scan_and_keeps_its_types(part):
    tx = optax.chain(f_mtl(gramian_of=part, weights_every=10), optax.adam(0.05))
    start, data = initial_params(), batch(0)

    def step(carry, _):
        params, state = carry
        updates, state = update(tx, params, state, data)
        return (optax.apply_updates(params, updates), state), None

    params, state = jax.lax.scan(step, (start, tx.init(start)), length=60)[0]
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(start))
    before, after = (sum(task_losses(p, data).values()) for p in (start, params))
    assert after < 0.5 * before


@pytest.mark.usefixtures("x64")
def test_lengths_do_not_depend_on_the_gramians_unit():
    """The same features, a hundred times as large for heads as small."""
    labels = {"trunk": "shared", "a": "a", "b": "b"}
    params = {"trunk": jnp.array([0.5, -1.0, 2.0]), "a": jnp.ones(3), "b": -jnp.ones(3)}

    def direction(unit):
        def loss_fn(params):
            z = samo_jax.representation(jnp.tanh(params["trunk"]) / unit)
            return {n: jnp.sum(params[n] * unit * z - 0.3) ** 2 for n in ("a", "b")}

        tx = samo_jax.f_mtl(
            FAIRGRAD,
            num_tasks=2,
            param_labels=labels,
            direction="global",
            gramian_of="representation",
        )
        return tx.update(params, tx.init(params), params, loss_fn=loss_fn)[0]

    chex.assert_trees_all_close(direction(100.0), direction(1.0), rtol=1e-9)
