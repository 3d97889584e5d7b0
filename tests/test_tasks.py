"""Losses, names, labels, gradients and the loop over tasks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samo_jax
from samo_jax._tasks import label_leaves, task_names


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


@pytest.mark.parametrize("unroll", [True, False, 1, 2, 3, 5])
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
