"""F-MTL against its algorithm by hand, and its linear special case."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samo_jax

from sharpness import (
    LABELS,
    SHARED,
    TASKS,
    add,
    batch,
    descend,
    descend_by_hand,
    gradients,
    initial_params,
    keep,
    multitask,
    norm,
    norm_groups,
    perturb,
    scale,
    task_losses,
    update,
)
from tiers import mostly_slow

assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-7, atol=1e-9)
MASK = dict.fromkeys(LABELS, True) | {"bias": False}


def f_mtl(combiner, rho=0.3, **kwargs):
    defaults = {"num_tasks": 3, "param_labels": LABELS}
    return samo_jax.f_mtl(combiner, rho, **defaults | kwargs)


def min_norm_weights(rows):
    """The shortest vector of the convex hull: try every set of active tasks."""
    matrix = np.stack(
        [np.concatenate([row[n].ravel() for n in SHARED]) for row in rows]
    )
    gramian, best = matrix @ matrix.T, None
    for size in range(1, len(rows) + 1):
        for active in itertools.combinations(range(len(rows)), size):
            weights = np.zeros(len(rows))
            inverse = np.linalg.pinv(gramian[np.ix_(active, active)], rcond=1e-14)
            weights[list(active)] = inverse.sum(1) / inverse.sum()
            length = weights @ gramian @ weights
            if min(weights) >= 0 and (best is None or length < best[0]):
                best = (length, weights)
    return best[1]


def weighted(weights, rows):
    return keep(add(*map(scale, rows, weights)), SHARED)


def rule(rho, adaptive):
    def eps(w, p):
        t = {n: abs(x) if adaptive else np.ones(()) for n, x in w.items()}
        length = norm({n: t[n] * p[n] for n in p})
        return {n: rho * t[n] ** 2 * p[n] / length for n in p}

    return eps


def by_hand(weights_of, rho, *, adaptive=False, direction="local", kind="separate"):
    def update(w, data):
        loss_parts = gradients(w, data)
        mean = scale(add(*loss_parts), 1 / 3)
        perturbed = []
        for i, head in enumerate(TASKS):
            p = loss_parts[i] if direction == "local" else mean
            eps = perturb(rule(rho, adaptive), w, p, norm_groups(kind, head))
            perturbed.append(gradients(add(w, eps), data)[i])
        flat_parts = [
            add(q, scale(g, -1)) for q, g in zip(perturbed, loss_parts, strict=True)
        ]
        shared = add(
            weighted(weights_of(loss_parts), loss_parts),
            weighted(weights_of(flat_parts), flat_parts),
        )
        heads = {head: q[head] for head, q in zip(TASKS, perturbed, strict=True)}
        return shared | heads

    return update


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    mostly_slow(
        [
            ({}, {}),
            ({"direction": "global"}, {"direction": "global"}),
            ({"rho": 2.0, "adaptive": True}, {"rho": 2.0, "adaptive": True}),
            ({"norm": "together"}, {"kind": "together"}),
            ({"norm": "layerwise"}, {"kind": "layerwise"}),
            (
                {"adaptive": True, "norm": "together"},
                {"adaptive": True, "kind": "together"},
            ),
        ],
        but=2,
        several=True,
    ),
)
def test_loss_and_flat_parts_are_combined_separately(arguments, expected):
    actual = descend(f_mtl(samo_jax.mgda(), **arguments), "float64")
    expected = descend_by_hand(
        by_hand(min_norm_weights, expected.pop("rho", 0.3), **expected)
    )
    assert_close(actual, expected)


@pytest.mark.usefixtures("x64")
def test_weights_of_both_parts_are_in_the_state():
    tx, params, data = f_mtl(samo_jax.mgda()), initial_params("float64"), batch(0)
    _, state = update(tx, params, tx.init(params), data)
    clean = gradients(params, data)
    assert_close(state.weights, min_norm_weights(clean), rtol=1e-6)
    flat = []
    for i, head in enumerate(TASKS):
        eps = perturb(rule(0.3, False), params, clean[i], norm_groups("separate", head))
        flat.append(add(gradients(add(params, eps), data)[i], scale(clean[i], -1)))
    assert_close(state.combiner_state.flat_weights, min_norm_weights(flat), rtol=1e-6)
    assert optax.tree.get(state, "flat_weights") is state.combiner_state.flat_weights


LINEAR = {
    "mean": samo_jax.mean(),
    "constant": samo_jax.constant([0.5, 0.2, 0.3]),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [{}, {"norm": "together"}, {"mask": MASK}], ids=str
)
@pytest.mark.parametrize("name", LINEAR)
def test_linear_combiner_is_per_task_sam(name, arguments):
    combiner = LINEAR[name]
    per_task_sam = samo_jax.sam(0.3, direction="local", **arguments)
    chex.assert_trees_all_close(
        descend(f_mtl(combiner, **arguments)),
        descend(multitask(per_task_sam, combiner)),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.slow
def test_mgda_is_not_linear():
    local = samo_jax.local_sam(0.3)
    decomposed = descend(f_mtl(samo_jax.mgda()))[0]["kernel"]
    direct = descend(multitask(local, samo_jax.mgda()))[0]["kernel"]
    assert jnp.linalg.norm(decomposed - direct) > 0.05 * jnp.linalg.norm(direct)


@pytest.mark.slow
def test_each_part_has_its_own_combiner_state():
    tx = f_mtl(samo_jax.smoothed(samo_jax.mgda(), 0.5))
    params, data = initial_params(), batch(0)
    _, state = update(tx, params, tx.init(params), data)
    loss_state, flat_state, _ = state.combiner_state
    loss_leaves, flat_leaves = map(jax.tree.leaves, (loss_state, flat_state))
    assert [x.shape for x in loss_leaves] == [x.shape for x in flat_leaves]
    assert any(jnp.any(a != b) for a, b in zip(loss_leaves, flat_leaves, strict=True))


def test_incoming_updates_only_give_the_shapes():
    tx, params, data = f_mtl(samo_jax.mgda()), initial_params(), batch(0)
    first, second = (
        tx.update(
            incoming, tx.init(params), params, loss_fn=lambda p: task_losses(p, data)
        )[0]
        for incoming in (params, jax.tree.map(jnp.zeros_like, params))
    )
    chex.assert_trees_all_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("unroll", [False, 2])
def test_unroll(unroll):
    chex.assert_trees_all_close(
        descend(f_mtl(samo_jax.mgda(), unroll=unroll), steps=1),
        descend(f_mtl(samo_jax.mgda()), steps=1),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"combiner": samo_jax.mgda}, r"`combiner` must be .*Call the factory"),
        ({"rho": -1}, "`rho` must be non-negative"),
        ({"direction": "own"}, '`direction` must be "global" or "local", got \'own\''),
        (
            {"direction": samo_jax.joint_sam()},
            '`direction` must be "global" or "local"',
        ),
        ({"norm": "both"}, "`norm` must be one of .*separate.*got 'both'"),
        ({"num_tasks": 0}, "`num_tasks` must be a positive int"),
        ({"unroll": -1}, "`unroll` must be"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        f_mtl(**{"combiner": samo_jax.mgda()} | arguments)


def test_other_batches_are_refused():
    tx, params, data = f_mtl(samo_jax.modo()), initial_params(), batch(0)

    def loss_fn(params):
        return task_losses(params, data)

    with pytest.raises(ValueError, match=r"`sample_loss_fns` is not for f_mtl\(\)"):
        tx.update(
            params, tx.init(params), params, loss_fn=loss_fn, sample_loss_fns=[loss_fn]
        )
