"""Perturbations per device, per group of devices and global, on eight devices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import samo_jax

from sharpness import (
    LABELS,
    RADIUS,
    TASKS,
    add,
    batch,
    gradients,
    initial_params,
    keep,
    norm_groups,
    perturb,
    scale,
    task_losses,
    total_gradient,
    total_loss,
)
from tiers import mostly_slow

DEVICES = 8
assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-4, atol=1e-5)


def make_mesh(**axes):
    return jax.make_mesh(
        tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes)
    )


def sharded_updates(tx, loss, mesh, averaged, *, steps=1, **options):
    """Updates on two examples a device; incoming updates averaged over some axes."""
    axes = mesh.axis_names

    def run(params, data):
        def loss_fn(p):
            return loss(p, data)

        state = tx.init(params)
        own = jax.tree.map(lambda w: lax.pcast(w, axes, to="varying"), params)
        for _ in range(steps):
            grads = samo_jax.mean_value_and_grad(loss_fn)(own)[1]
            if averaged:
                grads = lax.pmean(grads, averaged)
            updates, state = tx.update(grads, state, params, loss_fn=loss_fn)
        return updates, state.perturbation_state

    data = batch(0, size=2 * DEVICES)
    run = jax.shard_map(
        run, mesh=mesh, in_specs=(P(), P(axes)), out_specs=P(), **options
    )
    return jax.jit(run)(initial_params(), data)[0]


def parts(groups):
    """The examples of each group of devices."""
    data = batch(0, size=2 * DEVICES)
    return list(zip(*(np.split(np.asarray(a), groups) for a in data), strict=True))


def sam(w, p):
    del w
    return scale(p, RADIUS / np.sqrt(sum(np.sum(x**2) for x in p.values())))


def mean(trees):
    return scale(add(*trees), 1 / len(trees))


def by_hand(groups):
    """The mean over groups of the gradients at each group's own perturbed point."""
    w = {n: np.asarray(x, np.float64) for n, x in initial_params().items()}
    return mean(
        [
            total_gradient(add(w, sam(w, total_gradient(w, part))), part)
            for part in parts(groups)
        ]
    )


def one_task(perturbation, axis_name, **kwargs):
    return samo_jax.multitask(
        samo_jax.mean(), perturbation, num_tasks=1, key=0, axis_name=axis_name, **kwargs
    )


@pytest.mark.parametrize(
    ("axes", "averaged", "groups"),
    [
        pytest.param({"data": 8}, None, 8, id="device"),
        pytest.param({"group": 4, "member": 2}, "member", 4, id="group"),
        pytest.param(
            {"group": 2, "member": 4},
            None,
            8,
            id="device-of-two-axes",
            marks=pytest.mark.slow,
        ),
        pytest.param({"group": 2, "member": 4}, ("group", "member"), 1, id="global"),
        pytest.param(
            {"data": 8}, "data", 1, id="global-of-one-axis", marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.parametrize("check_vma", mostly_slow([True, False], but={True}))
def test_one_task(axes, averaged, groups, check_vma):
    actual = sharded_updates(
        one_task(samo_jax.sam(RADIUS), tuple(axes)),
        *(total_loss, make_mesh(**axes), averaged),
        check_vma=check_vma,
    )
    assert_close(actual, by_hand(groups))


@pytest.mark.parametrize("unroll", mostly_slow([True, False], but={False}))
@pytest.mark.parametrize("direction", mostly_slow(["local", "global"], but={"local"}))
def test_tasks_with_heads(direction, unroll):
    """Every device has K perturbations; combiner and heads see averaged gradients."""
    tx = samo_jax.multitask(
        samo_jax.constant([0.5, 0.2, 0.3]),
        samo_jax.sam(RADIUS, direction=direction),
        num_tasks=3,
        param_labels=LABELS,
        axis_name="data",
        unroll=unroll,
    )
    actual = sharded_updates(tx, task_losses, make_mesh(data=8), None)
    w = {n: np.asarray(x, np.float64) for n, x in initial_params().items()}
    rows = {head: [] for head in TASKS}
    for part in parts(8):
        clean = gradients(w, part)
        for i, head in enumerate(TASKS):
            p = clean[i] if direction == "local" else mean(clean)
            eps = perturb(sam, w, p, norm_groups("separate", head))
            rows[head].append(gradients(add(w, eps), part)[i])
    rows = {head: mean(trees) for head, trees in rows.items()}
    weighted = [scale(rows[h], c) for h, c in zip(TASKS, (0.5, 0.2, 0.3), strict=True)]
    heads = {head: row[head] for head, row in rows.items()}
    assert_close(actual, keep(add(*weighted), ("kernel", "bias")) | heads)


def unsharded_updates(tx, loss, steps=1):
    params, data = initial_params(), batch(0, size=2 * DEVICES)

    def loss_fn(p):
        return loss(p, data)

    state = tx.init(params)
    for _ in range(steps):
        grads = samo_jax.mean_value_and_grad(loss_fn)(params)[1]
        updates, state = tx.update(grads, state, params, loss_fn=loss_fn)
    return updates


@pytest.mark.parametrize(
    "perturbation",
    mostly_slow(
        [
            samo_jax.momentum_sam(RADIUS),
            None,
            samo_jax.sam(RADIUS),
            samo_jax.friendly_sam(RADIUS, 0.5),
            samo_jax.monge_sam(RADIUS),
        ],
        but=1,
    ),
    ids=["momentum", "plain", "sam", "friendly", "monge"],
)
def test_averaged_updates_give_the_unsharded_step(perturbation):
    """Two steps: what the methods remember is averaged too."""
    expected = unsharded_updates(one_task(perturbation, None), total_loss, steps=2)
    actual = sharded_updates(
        *(one_task(perturbation, "data"), total_loss, make_mesh(data=8), "data"),
        steps=2,
    )
    assert_close(actual, expected)


@pytest.mark.parametrize(
    "method",
    mostly_slow(["friendly_sam", "momentum_sam", "samo", "f_mtl"], but={"samo"}),
)
def test_methods_with_state_keep_it_common(method):
    """Each device's own updates in, and yet one state: `out_specs=P()` checks it."""
    kwargs = {"num_tasks": 3, "param_labels": LABELS, "axis_name": "data"}
    combiner = samo_jax.mean()
    if method == "samo":
        tx = samo_jax.samo(combiner, RADIUS, key=0, **kwargs)
    elif method == "f_mtl":
        tx = samo_jax.f_mtl(combiner, RADIUS, **kwargs)
    else:
        tx = samo_jax.multitask(combiner, getattr(samo_jax, method)(RADIUS), **kwargs)
    mesh = make_mesh(data=8)
    updates = sharded_updates(tx, task_losses, mesh, None, steps=2)
    chex.assert_tree_all_finite(updates)
    if method == "f_mtl":
        local = samo_jax.multitask(combiner, samo_jax.local_sam(RADIUS), **kwargs)
        assert_close(updates, sharded_updates(local, task_losses, mesh, None))


@pytest.mark.parametrize(
    "axis_type",
    mostly_slow([AxisType.Auto, AxisType.Explicit], but=1),
    ids=["auto", "explicit"],
)
@pytest.mark.parametrize(
    "method", mostly_slow(["sam", "surrogate_gap_sam", "look_sam"], but={"sam"})
)
def test_under_jit_alone_everything_is_global(method, axis_type):
    if method == "look_sam":
        tx = samo_jax.look_sam(one_task(samo_jax.sam(RADIUS), None), every=2)
    else:
        tx = one_task(getattr(samo_jax, method)(RADIUS), None)
    params, data = initial_params(), batch(0, size=2 * DEVICES)

    @jax.jit
    def run(params, data):
        def loss_fn(p):
            return total_loss(p, data)

        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(
                jax.grad(loss_fn)(params), state, params, loss_fn=loss_fn
            )
        return updates

    expected = run(params, data)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        params = jax.device_put(params, NamedSharding(mesh, P()))
        data = jax.device_put(data, NamedSharding(mesh, P("data")))
        actual = jax.device_get(run(params, data))
    assert_close(actual, expected)
    assert jnp.all(jnp.isfinite(actual["kernel"]))


SHARDED = {
    name: samo_jax.single_task(getattr(samo_jax, name)(RADIUS))
    for name in ("sam", "friendly_sam", "momentum_sam", "surrogate_gap_sam")
}
SHARDED |= {
    "look_sam": samo_jax.look_sam(SHARDED["sam"], every=2),
    "f_mtl": samo_jax.f_mtl(samo_jax.mgda(), RADIUS, num_tasks=1),
}


@pytest.mark.parametrize("name", mostly_slow(SHARDED, but={"momentum_sam"}))
def test_explicitly_sharded_parameters(name):
    """Nothing is ravelled, and the state keeps its sharding."""
    tx = SHARDED[name]
    params = jax.random.normal(jax.random.key(0), (16, 2))

    def loss_fn(w):
        return jnp.sum(jnp.cos(w) + w**4)

    @jax.jit
    def run(params, state):
        for _ in range(2):
            updates, state = tx.update(
                jax.grad(loss_fn)(params), state, params, loss_fn=loss_fn
            )
        return updates, state

    expected, _ = run(params, tx.init(params))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(params, NamedSharding(mesh, P("x")))
        state = tx.init(sharded)
        actual, new_state = run(sharded, state)
        assert jax.typeof(actual) == jax.typeof(sharded)
        assert jax.tree.map(jax.typeof, new_state) == jax.tree.map(jax.typeof, state)
    assert_close(jax.device_get(actual), expected)
