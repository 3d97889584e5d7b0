"""Losses by task: the same step, in the passes of each task alone."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samo_jax

from passes import flops
from sharpness import LABELS, PERTURBATIONS, TASKS, initial_params
from tiers import mostly_slow

LOOPS = [True, False, 2]
NAMES = ("up", "left", "right")


def batches(seed, size=4):
    rng = np.random.default_rng(seed)
    shapes = (3, size, 3), (3, size)
    return tuple(jnp.asarray(rng.normal(size=shape)) for shape in shapes)


def loss(params, batch, name="left"):
    x, y = batch
    hidden = jnp.tanh(x @ params["kernel"] + params["bias"][None, :])
    return jnp.mean(jnp.square(hidden @ params[name] - y))


def plain(data):
    return lambda params: {
        name: loss(params, jax.tree.map(lambda leaf, i=i: leaf[i], data))
        for i, name in enumerate(NAMES)
    }


def by_task(data, unroll=None):
    return samo_jax.by_task(loss, data, names=NAMES, unroll=unroll)


def updates(make_loss_fn, tx, steps=2):
    @jax.jit
    def step(params, state, data):
        loss_fn = make_loss_fn(data)
        losses, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        direction, state = tx.update(
            grads, state, params, loss_fn=loss_fn, probe_loss_fn=loss_fn
        )
        return jnp.hstack(jax.tree.leaves(losses)), direction, state

    params = initial_params("float64")
    state, found = tx.init(params), []
    for t in range(steps):
        losses, direction, state = step(params, state, batches(t))
        params = jax.tree.map(lambda w, d: w - 0.1 * d, params, direction)
        found.append((losses, direction, state.weights))
    return found


# The same as the plain function


@pytest.mark.usefixtures("x64")
def test_losses_are_those_of_each_batch():
    params, data = initial_params("float64"), batches(0)
    expected = plain(data)(params)
    listed = [jax.tree.map(lambda leaf, i=i: leaf[i], data) for i in range(3)]
    ragged = [listed[0], jax.tree.map(lambda leaf: leaf[:2], listed[1]), listed[2]]

    def indexed(params, i):
        return loss(params, jax.tree.map(lambda leaf: leaf[i], data))

    for unroll in LOOPS:
        for found in (
            by_task(data, unroll),
            by_task(listed, unroll),
            samo_jax.by_task(indexed, 3, names=NAMES, unroll=unroll),
        ):
            losses = found(params)
            assert list(losses) == sorted(NAMES)
            chex.assert_trees_all_close(losses, expected, rtol=1e-12)
    for unroll in (True, False):
        losses = samo_jax.by_task(loss, ragged, unroll=unroll)(params)
        expected = [loss(params, batch) for batch in ragged]
        np.testing.assert_allclose(losses, expected, rtol=1e-12)


COMBINERS = {
    "mean": samo_jax.mean(),
    "uncertainty": samo_jax.uncertainty(),
    "mgda": samo_jax.mgda(),
    "pcgrad": samo_jax.pcgrad(0),
    "upgrad": samo_jax.upgrad(),
}


WITH_LOSS_FN = [name for name, make in PERTURBATIONS.items() if make().loss is None]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("unroll", mostly_slow(LOOPS, but={False}))
@pytest.mark.parametrize(
    ("combiner", "perturbation"),
    [
        ("mgda", "joint"),
        *(
            pytest.param("mgda", name, marks=pytest.mark.slow)
            for name in WITH_LOSS_FN
            if name != "joint"
        ),
        *(pytest.param(name, None, marks=pytest.mark.slow) for name in COMBINERS),
    ],
)
def test_steps_are_those_of_the_plain_function(combiner, perturbation, unroll):
    make = functools.partial(
        samo_jax.multitask,
        COMBINERS[combiner],
        PERTURBATIONS[perturbation]() if perturbation else None,
        num_tasks=3,
        key=0,
    )
    chex.assert_trees_all_close(
        updates(functools.partial(by_task, unroll=unroll), make()),
        updates(plain, make(unroll=unroll)),
        rtol=1e-7,
        atol=1e-10,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("perturbation", mostly_slow([None, "joint"], but={None}))
def test_gramian_blocks_are_those_of_the_plain_function(perturbation):
    tx = samo_jax.multitask(
        samo_jax.mgda(),
        PERTURBATIONS[perturbation]() if perturbation else None,
        num_tasks=3,
        key=0,
        gramian_block=2,
    )
    chex.assert_trees_all_close(
        updates(by_task, tx), updates(plain, tx), rtol=1e-7, atol=1e-10
    )


@pytest.mark.parametrize("unroll", [True, False])
def test_mixed_precision_is_by_task(unroll):
    params, data = initial_params(), batches(0)
    half = samo_jax.mixed_precision(by_task(data, unroll), jnp.bfloat16, loss_scale=8.0)
    expected = samo_jax.mixed_precision(plain(data), jnp.bfloat16, loss_scale=8.0)
    assert type(half) is type(by_task(data))
    chex.assert_trees_all_close(half(params), expected(params), rtol=1e-6)
    chex.assert_trees_all_close(
        samo_jax.task_gradients(half, params),
        samo_jax.task_gradients(expected, params),
        rtol=0.02,
        atol=1e-3,
    )


# Heads


def headed(data, unroll):
    """A head for each task, which a traced index chooses by a branch."""

    def loss_of(params, i):
        batch = jax.tree.map(lambda leaf: leaf[i], data)
        if isinstance(i, int):
            return loss(params, batch, TASKS[i])
        heads = [functools.partial(loss, batch=batch, name=name) for name in TASKS]
        return jax.lax.switch(i, heads, params)

    return samo_jax.by_task(loss_of, 3, unroll=unroll)


def headed_plain(data):
    return lambda params: [
        loss(params, jax.tree.map(lambda leaf, i=i: leaf[i], data), name)
        for i, name in enumerate(TASKS)
    ]


INDEX_LABELS = {
    name: label if label == "shared" else TASKS.index(label)
    for name, label in LABELS.items()
}


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("unroll", mostly_slow([True, False], but={False}))
@pytest.mark.parametrize("combiner", mostly_slow(["mean", "mgda"], but={"mgda"}))
def test_heads_are_those_of_the_plain_function(combiner, unroll):
    tx = samo_jax.samo(
        COMBINERS[combiner], num_tasks=3, key=0, param_labels=INDEX_LABELS
    )
    chex.assert_trees_all_close(
        updates(functools.partial(headed, unroll=unroll), tx),
        updates(headed_plain, tx),
        rtol=1e-7,
        atol=1e-10,
    )


@pytest.mark.usefixtures("x64")
def test_heads_that_are_swapped_raise():
    labels = INDEX_LABELS | {"left": 1, "right": 0}
    tx = samo_jax.multitask(samo_jax.mgda(), num_tasks=3, param_labels=labels)
    with pytest.raises(ValueError, match="`param_labels` must label a leaf with the"):
        updates(functools.partial(headed, unroll=False), tx)


# Absent tasks


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("unroll", mostly_slow(LOOPS, but={False}))
@pytest.mark.parametrize("combiner", ["mean", "mgda"])
def test_a_task_that_is_not_finite_is_left_out(combiner, unroll):
    def broken(data):
        return by_task(jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), data), unroll)

    def masked(data):
        return by_task(data, unroll)

    params = initial_params("float64")
    tx = samo_jax.multitask(COMBINERS[combiner], num_tasks=3)
    step = functools.partial(tx.update, params, tx.init(params), params)
    found, state = step(loss_fn=broken(batches(0)))
    mask = {"up": True, "left": False, "right": True}
    expected, _ = step(loss_fn=masked(batches(0)), task_mask=mask)
    chex.assert_trees_all_close(found, expected, rtol=1e-9)
    assert state.skipped.tolist() == [1, 0, 0]
    assert any(map(jnp.any, jax.tree.leaves(found)))


# Passes


WIDTH, EXAMPLES, MANY = 64, 128, 16


def deep_loss(params, x):
    for layer in params:
        x = jnp.tanh(x @ layer)
    return jnp.mean(x**2)


def pass_flops(shape):
    layers = [jnp.eye(WIDTH)] * 2
    return flops(jax.value_and_grad(deep_loss), layers, jnp.ones(shape))


@pytest.mark.parametrize(
    ("unroll", "perturbation", "passes"),
    mostly_slow(
        [
            # XLA counts the body of a loop once.
            (True, None, 1),
            (MANY, None, 1),
            (True, samo_jax.global_sam(), 2),
            (
                True,
                samo_jax.joint_sam(local=samo_jax.probe(shared=True)),
                # Its two probes are forward passes.
                2 + 2 / 2.5,
            ),
        ],
        but=2,
        several=True,
    ),
)
def test_passes_are_those_of_each_task_alone(unroll, perturbation, passes):
    tx = samo_jax.multitask(samo_jax.mgda(), perturbation, num_tasks=MANY, key=0)

    def step(params, state, x):
        loss_fn = samo_jax.by_task(deep_loss, x, unroll=unroll)
        grads = params
        if perturbation is not None:
            grads = samo_jax.mean_value_and_grad(loss_fn)(params)[1]
        return tx.update(grads, state, params, loss_fn=loss_fn)

    params = [jnp.eye(WIDTH)] * 2
    made = flops(step, params, tx.init(params), jnp.ones((MANY, EXAMPLES, WIDTH)))
    assert 0.95 < made / (passes * pass_flops((MANY * EXAMPLES, WIDTH))) < 1.25


@pytest.mark.parametrize("combiner", [samo_jax.mgda(), samo_jax.mean()])
def test_passes_in_a_loop(combiner):
    """Counted when they run: one of each task at its point."""
    runs = []

    def loss_of(w, i):
        jax.debug.callback(lambda i: runs.append(int(i)), i)
        return jnp.sum((w - i) ** 2)

    loss_fn = samo_jax.by_task(loss_of, 5, unroll=False)
    w = jnp.ones(3)
    tx = samo_jax.multitask(combiner, samo_jax.global_sam(), num_tasks=5)
    step = jax.jit(lambda w, state: tx.update(w, state, w, loss_fn=loss_fn))
    jax.block_until_ready(step(w, tx.init(w)))
    jax.effects_barrier()
    assert sorted(runs) == list(range(5))


def test_many_tasks_are_traced_a_few_times():
    calls = []

    def loss_of(w, i):
        calls.append(i)
        return jnp.sum((w - i) ** 2)

    loss_fn = samo_jax.by_task(loss_of, 617)
    tx = samo_jax.multitask(samo_jax.mean(), num_tasks=617)
    w = jnp.ones(3)
    jax.jit(lambda w, s: tx.update(w, s, w, loss_fn=loss_fn)).lower(w, tx.init(w))
    assert len(calls) < 10


def test_labels_are_inferred_task_by_task():
    """Also of so many tasks that the losses are computed in a loop."""
    params = {"trunk": jnp.ones(3), "heads": [jnp.ones(())] * 10}

    def loss(params, i):
        heads = params["heads"]
        head = heads[i] if isinstance(i, int) else jnp.stack(heads)[i]
        return jnp.sum(params["trunk"]) * head

    found = samo_jax.infer_labels(samo_jax.by_task(loss, 10), params)
    assert found == {"trunk": "shared", "heads": [str(i) for i in range(10)]}
