"""Losses, names, labels, gradients and the loop over tasks."""

from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samo_jax
from samo_jax._labels import label_leaves
from samo_jax._tasks import task_names

from tiers import mostly_slow


def losses(params):
    w = params["w"]
    return {"b": jnp.sum(w**2), "a": jnp.sum(w), "c": jnp.sum(w**3) / 3}


PARAMS = {"w": jnp.array([1.0, 2.0])}
GRADIENTS = [[1, 1], [2, 4], [1, 4]]  # a, b, c: JAX sorts the keys of a dict


def as_list(params):
    return list(jax.tree.leaves(losses(params)))


def as_array(params):
    return jnp.stack(as_list(params))


def nested(params):
    first, *rest = as_list(params)
    return {"x": first, "y": {"z": rest}}


FORMS = {"dict": losses, "list": as_list, "array": as_array, "nested": nested}


@pytest.mark.parametrize("unroll", mostly_slow([False, 1, 2, 3, 5], but={False, 2}))
@pytest.mark.parametrize("form", FORMS)
def test_task_gradients(form, unroll):
    grads = samo_jax.task_gradients(FORMS[form], PARAMS, unroll=unroll)
    np.testing.assert_allclose(grads["w"], GRADIENTS)


@pytest.mark.parametrize("form", FORMS)
def test_mean_value_and_grad(form):
    values, grad = samo_jax.mean_value_and_grad(FORMS[form])(PARAMS)
    chex.assert_trees_all_close(values, FORMS[form](PARAMS))
    np.testing.assert_allclose(grad["w"], np.mean(GRADIENTS, axis=0), rtol=1e-6)


def test_mean_value_and_grad_with_aux_and_arguments():
    def loss_fn(params, factor, *, shift):
        return [factor * jnp.sum(params) + shift, jnp.sum(params)], {"seen": params + 1}

    (values, aux), grad = samo_jax.mean_value_and_grad(loss_fn, has_aux=True)(
        jnp.array([1.0, 2.0]), 3.0, shift=10.0
    )
    assert [float(v) for v in values] == [19.0, 3.0]
    np.testing.assert_allclose(aux["seen"], [2, 3])
    np.testing.assert_allclose(grad, [2, 2])


def test_names():
    shapes = {name: jax.eval_shape(form, PARAMS) for name, form in FORMS.items()}
    assert task_names(shapes["dict"]) == ("a", "b", "c")
    assert task_names(shapes["list"]) == ("0", "1", "2")
    assert task_names(shapes["array"], 3) == ("0", "1", "2")
    assert task_names(shapes["nested"]) == ("x", "y/z/0", "y/z/1")
    assert task_names(jnp.array(1.0)) == ("0",)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"a": jnp.ones(8), "b": jnp.array(1.0)}, r"leaf 'a' of shape \(8,\)"),
        (jnp.ones((2, 2)), r"shape \(2, 2\). Reduce over the batch first"),
        ({"a": jnp.array(1)}, "dtype int32. A count or an accuracy"),
        ({}, "one or more losses; got 0"),
        (None, "one or more losses; got 0"),
    ],
    ids=["vector", "matrix", "integer", "empty", "none"],
)
def test_wrong_losses(returned, message):
    with pytest.raises(ValueError, match=message):
        samo_jax.mean_value_and_grad(lambda _: returned)(PARAMS)
    with pytest.raises(ValueError, match=message):
        samo_jax.task_gradients(lambda _: returned, PARAMS)


@pytest.mark.parametrize(("num_tasks", "traces"), [(8, 8), (9, 1)])
def test_many_tasks_are_looped_over(num_tasks, traces):
    """Beyond the trace that finds out how many there are."""
    counted = []

    def loss_fn(w):
        counted.append(1)
        return jnp.sin(w) ** 2

    samo_jax.task_gradients(loss_fn, jnp.ones(num_tasks))
    assert len(counted) == 1 + traces


@pytest.mark.parametrize("unroll", [0, -1, "yes", 1.5])
def test_wrong_unroll(unroll):
    with pytest.raises(ValueError, match="`unroll` must be None, True, False or a pos"):
        samo_jax.task_gradients(losses, PARAMS, unroll=unroll)


def test_labels():
    params = {"body": {"k": 1, "b": 2}, "left": {"k": 3, "b": 4}}
    expected = {
        "body": {"k": "shared", "b": "shared"},
        "left": {"k": "left", "b": "left"},
    }
    prefix = {"body": "shared", "left": "left"}
    assert label_leaves(params, prefix) == expected
    assert label_leaves(params, lambda _: prefix) == expected
    assert set(jax.tree.leaves(label_leaves(params, None))) == {"shared"}
    with pytest.raises(ValueError, match="`param_labels` must be a pytree prefix"):
        label_leaves(params, {"body": "shared"})


class Callable(eqx.Module):
    """A model, and (with labels or bools as leaves) what tells its leaves apart."""

    body: Any
    left: Any
    right: Any

    def __call__(self, x):
        h = jnp.tanh(self.body @ x)
        return [jnp.sum((self.left @ h - 1) ** 2), jnp.sum((self.right @ h) ** 2)]


MODEL = Callable(jnp.ones((3, 2)), jnp.ones((1, 3)), 2 * jnp.ones((1, 3)))
HEADS = Callable("shared", 0, 1)
BODY = Callable(True, False, False)


@pytest.mark.slow
@pytest.mark.parametrize("form", [lambda tree: tree, lambda tree: lambda _: tree])
def test_trees_that_can_be_called_are_trees(form):
    """Labels, groups and masks alike; functions, and what else can be called, are."""
    x = jnp.array([0.5, -0.3])
    grads = jax.grad(lambda model: sum(model(x)) / 2)(MODEL)

    def step(combiner, perturbation, **kwargs):
        tx = samo_jax.multitask(combiner, perturbation, num_tasks=2, **kwargs)
        direction, state = tx.update(
            grads, tx.init(MODEL), MODEL, loss_fn=lambda model: model(x)
        )
        return direction, state.combiner_state

    groups = Callable("first", "last", "last")
    _, state = step(samo_jax.grouped(samo_jax.mean(), form(groups)), None)
    assert set(state.weights) == {"first", "last"}

    clean = step(samo_jax.mean(), None, param_labels=form(HEADS))[0]
    for perturbation in (
        samo_jax.sam(1.0, mask=form(BODY)),
        samo_jax.sam(1.0, direction=samo_jax.probe(mask=form(BODY))),
        samo_jax.adaptive_sam(1.0, adapt=form(BODY)),
    ):
        labels = form(HEADS)
        moved = step(samo_jax.mean(), perturbation, param_labels=labels, key=0)[0]
        assert jax.tree.structure(moved) == jax.tree.structure(clean)
        assert np.any(moved.body != clean.body)


def test_a_part_of_a_function_is_called():
    """`jax.tree_util.Partial` is a tree as well, but none of parameters."""
    labels = jax.tree_util.Partial(lambda label, _: {"w": label}, "shared")
    assert label_leaves(PARAMS, labels) == {"w": "shared"}


@pytest.mark.parametrize("index", [1, np.int32(1), "1"], ids=["int", "NumPy", "name"])
@pytest.mark.parametrize("form", [list, jnp.stack], ids=["list", "array"])
def test_labels_are_indices_of_tasks_without_names(form, index):
    params = {"body": jnp.array(0.5), "head": jnp.array(2.0)}

    def loss_fn(p):
        return form([jnp.sin(p["body"]), p["body"] * p["head"] ** 2])

    labels = {"body": "shared", "head": index}
    tx = samo_jax.multitask(samo_jax.mean(), num_tasks=2, param_labels=labels)
    direction, _ = tx.update(params, tx.init(params), params, loss_fn=loss_fn)
    np.testing.assert_allclose(direction["head"], 2.0, rtol=1e-6)


def heads(p, route=lambda h, head: h @ head):
    """Two tasks with a head each, whose values are joined and taken apart again."""
    h = jax.nn.relu(p["body"])
    return {
        name: jnp.mean((route(h, p["heads"][name]) - 1) ** 2)
        for name in ("left", "right")
    }


HEAD_PARAMS = {
    "body": jnp.ones((4, 3)),
    "heads": {"left": jnp.ones((3, 2)), "right": jnp.ones((3, 2))},
}
RIGHT = {"body": "shared", "heads": {"left": "left", "right": "right"}}
SWAPPED = {"body": "shared", "heads": {"left": "right", "right": "left"}}
NO_BODY = {"body": "left", "heads": {"left": "left", "right": "right"}}


def gated(h, head):
    """Through what cannot be looked into."""

    @jax.custom_vjp
    def gate(x):
        return x

    gate.defvjp(lambda x: (x, None), lambda _, ct: (ct,))
    return gate(h @ head)


def dropped(h, head):
    return jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, h.shape), h, 0) @ head


FAULTY = [
    (NO_BODY, "'body'.*, which 'right' uses, too. Label it 'shared'"),
    (SWAPPED, "'left'.*, which 'left' uses, not 'right'. Label it 'left'"),
]
IDLE = [
    (NO_BODY, "'body'.*, which 'right' uses, not 'left'. Label it 'right'"),
    (SWAPPED, "'right'.*, which 'right' uses, not 'left'. Label it 'right'"),
]
LOSSES = {
    "plain": (heads, FAULTY),
    "under jit": (jax.jit(heads), FAULTY),
    "under checkpoint": (jax.checkpoint(heads), FAULTY),
    "dropout": (lambda p: heads(p, dropped), FAULTY[1:]),
    "a custom derivative": (lambda p: heads(p, gated), FAULTY[1:]),
    "nothing for a task": (lambda p: heads(p) | {"left": 0.0}, IDLE),
}


def update_labelled(loss_fn, labels):
    tx = samo_jax.multitask(samo_jax.mean(), num_tasks=2, param_labels=labels)
    return jax.eval_shape(
        lambda p: tx.update(p, tx.init(p), p, loss_fn=loss_fn)[0], HEAD_PARAMS
    )


@pytest.mark.parametrize("case", LOSSES)
def test_labels_that_the_losses_contradict(case):
    """Only what is certain raises: what may be used may have no gradient."""
    loss_fn, faults = LOSSES[case]
    update_labelled(loss_fn, RIGHT)
    raised = [labels for labels, _ in faults]
    for labels, message in faults:
        with pytest.raises(ValueError, match=message):
            update_labelled(loss_fn, labels)
    for labels in (NO_BODY, SWAPPED):
        if labels not in raised:
            update_labelled(loss_fn, labels)


def test_labels_are_checked_under_transformations():
    for transform in (jax.vmap, jax.jacfwd):
        params = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), HEAD_PARAMS)
        tx = samo_jax.multitask(samo_jax.mean(), num_tasks=2, param_labels=SWAPPED)

        def step(p, tx=tx):
            return tx.update(p, tx.init(p), p, loss_fn=heads)[0]

        with pytest.raises(ValueError, match="uses, not"):
            transform(step)(params)


@pytest.mark.parametrize("devices", [1, 8])
def test_gramian_and_combine_of_many_leaves_and_dtypes(monkeypatch, devices):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    rng = np.random.default_rng(0)
    shapes = [(3, 4), (3,), (3, 2, 5, 2)]
    leaves = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    flat = np.concatenate([leaf.reshape(3, -1) for leaf in leaves], axis=1)
    np.testing.assert_allclose(
        samo_jax.gramian([jnp.asarray(leaf) for leaf in leaves]),
        flat @ flat.T,
        rtol=1e-5,
    )
    weights = jnp.array([0.5, -1.0, 2.0])
    combined = samo_jax.combine(weights, leaves)
    np.testing.assert_allclose(
        np.concatenate([np.ravel(leaf) for leaf in combined]), weights @ flat, rtol=1e-5
    )
    half = [jnp.asarray(leaf, jnp.bfloat16) for leaf in leaves]
    assert samo_jax.gramian(half).dtype == jnp.float32
    assert {leaf.dtype for leaf in samo_jax.combine(weights, half)} == {
        jnp.dtype("bfloat16")
    }


def test_gramian_of_a_leaf_in_blocks(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    leaf = np.random.default_rng(0).integers(-3, 4, (4, 70, 1001))
    flat = leaf.reshape(4, -1)
    gramian = jax.jit(samo_jax.gramian)(jnp.asarray(leaf, jnp.float32))
    np.testing.assert_array_equal(gramian, flat @ flat.T)


@pytest.mark.parametrize("grads", [{}, [jnp.ones((2, 3)), jnp.ones((3, 3))], 1.0])
def test_gramian_of_wrong_leaves(grads):
    with pytest.raises(ValueError, match="one common leading task axis"):
        samo_jax.gramian(grads)


def test_delta_m():
    values = samo_jax.delta_m(
        [[0.9, 2.0], [1.1, 3.0]], [1.0, 2.5], higher_is_better=[True, False]
    )
    np.testing.assert_allclose(values, [(10 - 20) / 2, (-10 + 20) / 2], atol=1e-4)


def test_labels_go_unchecked_where_a_program_cannot_be_read(monkeypatch):
    """A version of JAX to come must not stop a training: a warning does."""

    def fail(_program):
        raise KeyError("jaxpr")

    monkeypatch.setattr("samo_jax._label_uses.dependencies", fail)
    labels = {"w": "a"}  # Wrong: all tasks use it.
    tx = samo_jax.multitask(samo_jax.mean(), num_tasks=3, param_labels=labels)
    with pytest.warns(UserWarning, match="`param_labels` were not checked.*'jaxpr'"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, loss_fn=losses)
    with pytest.raises(ValueError, match=r"`param_labels` cannot be inferred.*'jaxpr'"):
        samo_jax.infer_labels(losses, PARAMS)


@pytest.mark.parametrize("baseline", [0.0, -0.0, np.nan, np.inf, -np.inf])
def test_delta_m_leaves_out_metrics_without_a_baseline(baseline):
    """It is that of the others, whatever this metric is; a diverged run's is NaN."""
    metrics = np.array([[0.9, 2.0], [1.1, np.nan]])
    expected = samo_jax.delta_m(metrics, [1.0, 2.5], higher_is_better=[True, False])
    for value in (0.0, 1.0, np.nan, np.inf):
        with_one = np.insert(metrics, 1, value, axis=1)
        found = samo_jax.delta_m(
            with_one, [1.0, baseline, 2.5], higher_is_better=[True, True, False]
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.isnan(found).tolist() == [False, True]
    assert np.isnan(samo_jax.delta_m([1.0], [baseline]))
