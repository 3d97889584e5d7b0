"""`pcd`: the primary gradient, bent as far as the secondary tasks demand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import samo_jax

from tiers import mostly_slow


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def gradients(seed, num_tasks=4):
    rng = np.random.default_rng(seed)
    scales = 10 ** rng.uniform(-1, 1, (num_tasks, 1))
    return scales * rng.normal(size=(num_tasks, 6))


def brute_force(rows, primary, tau):
    """The projection of the primary unit gradient, by SLSQP, with its length."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    others = np.delete(units, primary, axis=0)
    demand = {"type": "ineq", "fun": lambda d: others @ d - np.delete(tau, primary)}
    found = minimize(
        lambda d: np.sum((d - units[primary]) ** 2) / 2,
        units[primary],
        jac=lambda d: d - units[primary],
        constraints=[demand],
        options={"ftol": 1e-15, "maxiter": 500},
    ).x
    return found / np.linalg.norm(found) * np.linalg.norm(rows[primary])


@pytest.mark.parametrize("tau", mostly_slow([0.0, 0.02, 0.5], but=[0.02]))
@pytest.mark.parametrize("primary", mostly_slow(range(4), but=[2]))
def test_it_is_the_nearest_direction_that_serves_all(primary, tau):
    rows = gradients(primary)
    taus = tau * np.array([1.0, 2.0, 1.0, 0.5])
    gramian = jnp.asarray(rows @ rows.T)
    weights, info = samo_jax.pcd_weights(gramian, primary, taus, return_info=True)
    wanted = brute_force(rows, primary, taus)
    np.testing.assert_allclose(weights @ rows, wanted, atol=1e-6 * abs(wanted).max())
    assert info.converged


def test_opposite_demands_are_dropped():
    rows = jnp.array([[1.0, 2, 0], [0, 1, 0], [0, -1, 0]])
    gramian = rows @ rows.T
    weights, info = samo_jax.pcd_weights(gramian, tau=0.02, return_info=True)
    np.testing.assert_allclose(weights, [1, 0, 0])
    assert not info.converged
    weights = samo_jax.pcd_weights(gramian, tau=0.0)
    np.testing.assert_allclose(weights @ rows, [5**0.5, 0, 0], atol=1e-7)


def test_without_the_primary_gradient_there_is_no_direction():
    gramian = jnp.diag(jnp.array([0.0, 1.0, 4.0]))
    np.testing.assert_array_equal(samo_jax.pcd_weights(gramian), 0)


def test_the_first_present_task_stands_in_for_an_absent_one():
    rows = gradients(0)
    present = jnp.array([True, True, False, True])
    found = samo_jax.pcd_weights(rows @ rows.T, 2, 0.3, present=present)
    others = rows[present]
    wanted = samo_jax.pcd_weights(others @ others.T, 0, 0.3)
    np.testing.assert_allclose(found[present], wanted, rtol=1e-10)
    assert found[2] == 0


def test_a_primary_gradient_that_is_forbidden_vanishes():
    gramian = jnp.array([[1.0, -2.0], [-2.0, 4.0]])
    np.testing.assert_array_equal(samo_jax.pcd_weights(gramian, tau=0.0), 0)


def test_running_norms_wait_for_absent_tasks():
    weighting = samo_jax.pcd(tau=0.5, decay=0.75)
    state = weighting.init(2)
    for squares, present in (([1, 4], [1, 1]), ([9, 0], [1, 0]), ([1, 16], [1, 1])):
        gramian = jnp.diag(jnp.array(squares, float))
        given = {"present": jnp.array(present, bool)}
        weights, state = weighting.update(gramian, state, **given)
    np.testing.assert_array_equal(state.count, [3, 2])
    averages = [(0.75**2 + 0.75 * 9 + 1) / (0.75**2 + 0.75 + 1), (3 + 16) / 1.75]
    wanted = samo_jax.pcd_weights(gramian, tau=0.5, squared_norms=jnp.array(averages))
    np.testing.assert_allclose(weights, wanted, rtol=1e-12)
    found = state.average / (1 - 0.75 ** np.array([3, 2]))
    np.testing.assert_allclose(found, averages, rtol=1e-12)


def test_the_primary_task_by_name():
    def loss_fn(w):
        return {"sparsity": jnp.sum(jnp.abs(w)), "accuracy": jnp.sum((w - 2) ** 2)}

    def step(primary, tau):
        combiner = samo_jax.pcd(primary, tau)
        tx = samo_jax.multitask(samo_jax.smoothed(combiner), num_tasks=2)
        params = jnp.array([1.0, -1.0])
        return tx.update(params, tx.init(params), params, loss_fn=loss_fn)[0]

    by_index = step(1, [0.9, 0.1])
    by_name = step("sparsity", {"sparsity": 0.1, "accuracy": 0.9})
    np.testing.assert_array_equal(by_name, by_index)
    with pytest.raises(ValueError, match="or one of accuracy, sparsity, got 'size'"):
        step("size", 0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: samo_jax.pcd(tau=1.5), r"`tau` must be in \[0, 1\], got 1.5"),
        (lambda: samo_jax.pcd(decay=2), r"`decay` must be in \[0, 1\], got 2"),
        (lambda: samo_jax.pcd(3).init(2), "`primary` must be the index of one of 2"),
        (lambda: samo_jax.pcd_weights(jnp.eye(2), 0.5), "`primary` must be the index"),
        (lambda: samo_jax.pcd_weights(jnp.eye(2), "a"), "`primary` must be an index"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
