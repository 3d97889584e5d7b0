"""SPSA, radii and perturbations against closed forms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samo_jax

TREE = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([[12.0]]), "c": jnp.zeros(2)}


def norm(tree):
    return float(optax.tree.norm(tree))


def quadratic(key, size):
    hessian = jax.random.normal(key, (size, size))
    hessian = hessian @ hessian.T
    return hessian, lambda w: w @ hessian @ w / 2 + jnp.sum(w)


@pytest.mark.parametrize("mu", [1e-2, 0.5])
def test_directional_difference_is_exact_for_quadratics(key, mu):
    _, loss_fn = quadratic(key, 6)
    w, z = jax.random.normal(key, (2, 6))
    difference = samo_jax.directional_difference(loss_fn, w, z, mu=mu)
    np.testing.assert_allclose(difference, z @ jax.grad(loss_fn)(w), rtol=2e-3)


def test_directional_difference_of_all_losses_and_dtypes():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), TREE)
    direction = jax.tree.map(jnp.ones_like, TREE)
    differences = samo_jax.directional_difference(
        lambda p: {"sum": sum(jnp.sum(x) for x in jax.tree.leaves(p)), "pair": p["a"]},
        params,
        direction,
        mu=0.5,
    )
    assert differences["sum"] == 5
    np.testing.assert_allclose(differences["pair"], [1, 1])
    assert differences["sum"].dtype == jnp.float32


def test_spsa_is_unbiased_for_linear_losses(key):
    slope = jnp.array([1.0, -2.0, 0.5])
    estimates = jax.vmap(
        lambda key: samo_jax.spsa_gradient(
            key, lambda w: slope @ w, jnp.zeros(3), mu=0.1
        )
    )(jax.random.split(key, 20_000))
    error = np.std(estimates, axis=0) / np.sqrt(len(estimates))
    assert np.all(np.abs(estimates.mean(0) - slope) < 4 * error)


@pytest.mark.parametrize("size", [100, 10_000])
def test_spsa_cosine_falls_with_dimension(key, size):
    """E|cos| = sqrt(2 / (pi n)): what one probe can tell about a gradient."""
    slope = jnp.ones(size)

    def cosine(key):
        estimate = samo_jax.spsa_gradient(
            key, lambda w: slope @ w, jnp.zeros(size), mu=0.1
        )
        return jnp.abs(estimate @ slope) / jnp.linalg.norm(estimate) / size**0.5

    cosines = jax.vmap(cosine)(jax.random.split(key, 400))
    assert np.mean(cosines) == pytest.approx(np.sqrt(2 / (np.pi * size)), rel=0.15)


def test_layerwise_normalize():
    reference = {"a": jnp.array([0.0, 1.0]), "b": jnp.zeros((1, 1)), "c": jnp.ones(2)}
    scaled = samo_jax.layerwise_normalize(TREE, reference)
    np.testing.assert_allclose(scaled["a"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(scaled["b"], 0)
    np.testing.assert_array_equal(scaled["c"], 0)  # zero stays zero, never NaN


def test_scale_to_radius():
    assert norm(samo_jax.scale_to_radius(TREE, 0.5)) == pytest.approx(0.5, rel=1e-6)
    groups = {"a": "shared", "b": "left", "c": "right"}
    scaled = samo_jax.scale_to_radius(TREE, 0.5, groups)
    np.testing.assert_allclose(scaled["a"], [0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(scaled["b"], [[0.5]], rtol=1e-6)
    np.testing.assert_array_equal(scaled["c"], 0)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), TREE)
    chex.assert_tree_all_finite(samo_jax.scale_to_radius(half, 0.5))
    assert samo_jax.scale_to_radius(half, 0.5)["a"].dtype == jnp.float32


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_joint_perturbation(key, alpha):
    mean_grad, local = (
        {"a": jax.random.normal(k, (5,)), "b": jax.random.normal(k, (2, 3))}
        for k in jax.random.split(key)
    )
    eps = samo_jax.joint_perturbation(mean_grad, local, rho=0.1, alpha=alpha)

    g, z = (jax.tree.map(lambda x: np.asarray(x, float), t) for t in (mean_grad, local))
    joint = {
        n: alpha * g[n]
        + (1 - alpha) * z[n] * np.linalg.norm(g[n]) / np.linalg.norm(z[n])
        for n in g
    }
    length = np.sqrt(sum(np.sum(x**2) for x in joint.values()))
    chex.assert_trees_all_close(
        eps, {n: 0.1 * x / length for n, x in joint.items()}, rtol=1e-5
    )
    louder = jax.tree.map(lambda x: 1e4 * x, local)
    chex.assert_trees_all_close(
        samo_jax.joint_perturbation(mean_grad, louder, rho=0.1, alpha=alpha),
        eps,
        rtol=1e-5,
    )


def test_zero_gradients_give_zero_perturbations():
    zero = jax.tree.map(jnp.zeros_like, TREE)
    eps = samo_jax.joint_perturbation(zero, zero, rho=0.1, alpha=0.5)
    chex.assert_trees_all_equal(eps, zero)
    eps = samo_jax.joint_perturbation(zero, TREE, rho=0.1, alpha=0.5)
    chex.assert_trees_all_equal(eps, zero)


def test_a_users_own_perturbation_and_combiner():
    """Ascend each task's sign gradient with momentum; weight tasks by their losses."""

    def init(params, num_tasks):
        del num_tasks
        return jax.tree.map(jnp.zeros_like, params)

    def prepare(problem, state):
        return jax.tree.map(lambda g, m: 0.9 * m + g, problem.mean_grad, state)

    sign_sam = samo_jax.Perturbation(
        prepare,
        perturb=lambda momentum, _: jax.tree.map(lambda m: 0.1 * jnp.sign(m), momentum),
        init=init,
        finish=lambda momentum, task_grads, _: (task_grads, momentum),
    )
    last = samo_jax.Weighting(
        lambda num_tasks: jnp.zeros(num_tasks),
        lambda _, state, losses, **_extra: (losses / jnp.sum(losses), state + 1),
    )
    tx = samo_jax.multitask(last, sign_sam, num_tasks=2)
    params = jnp.array([1.0, -2.0])
    state = tx.init(params)

    def loss_fn(w):
        return [jnp.sum(w**2), jnp.sum((w - 1) ** 2)]

    momentum = np.zeros(2)
    for _ in range(2):
        values, grad = samo_jax.mean_value_and_grad(loss_fn)(params)
        direction, state = tx.update(
            grad, state, params, loss_fn=loss_fn, losses=jnp.stack(values)
        )
        momentum = 0.9 * momentum + np.asarray(grad)
        point = params + 0.1 * np.sign(momentum)
        weights = np.array(values) / np.sum(values)
        expected = weights[0] * 2 * point + weights[1] * 2 * (point - 1)
        np.testing.assert_allclose(direction, expected, rtol=1e-5)
    np.testing.assert_allclose(state.perturbation_state, momentum, rtol=1e-6)
    np.testing.assert_array_equal(state.combiner_state, [2, 2])
