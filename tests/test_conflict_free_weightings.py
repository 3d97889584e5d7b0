"""UPGrad, DualProj, CAGrad and Nash-MTL against NNLS, grids and closed forms."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

import samo_jax

from tiers import mostly_slow

METHODS = {
    "dualproj": samo_jax.dualproj_weights,
    "upgrad": samo_jax.upgrad_weights,
    "cagrad-1.5": partial(samo_jax.cagrad_weights, c=1.5),
    "nash_mtl": samo_jax.nash_mtl_weights,
}
J_BASE = np.array([[-4.0, 1, 1], [6, 1, 1]])


def jacobian(num_tasks, size, *, spread=1e2, scale=1.0, seed=0):
    rng = np.random.default_rng([seed, num_tasks, size])
    half = np.log10(spread) / 2
    rows = 10 ** rng.uniform(-half, half, size=(num_tasks, 1))
    return scale * rows * rng.normal(size=(num_tasks, size))


def conflict(jac, weights):
    """The worst ascent of a task, relative to gradients without cancellation."""
    norms = np.linalg.norm(jac, axis=1)
    rates = jac @ (jac.T @ np.asarray(weights, float))
    return max(0, -np.min(rates / norms)) / (np.abs(weights) @ norms)


def nnls_projection(jac, u):
    """J'v for `min ||J'v||, v >= u`, as a non-negative least-squares problem."""
    scales = np.linalg.norm(jac, axis=1)
    s, _ = nnls((jac / scales[:, None]).T, -jac.T @ u)
    return jac.T @ (u + s / scales)


@pytest.mark.parametrize("num_tasks", mostly_slow([1, 2, 5, 12], but={2}))
@pytest.mark.usefixtures("x64")
def test_projections_against_nnls(num_tasks):
    for size in (1, 3, 7, 30):
        jac = jacobian(num_tasks, size)
        u = np.random.default_rng(0).uniform(size=num_tasks)
        scale = np.linalg.norm(jac, axis=1) @ u
        np.testing.assert_allclose(
            jac.T @ samo_jax.dualproj_weights(jac @ jac.T, u),
            nnls_projection(jac, u),
            atol=1e-8 * scale,
        )
        np.testing.assert_allclose(
            jac.T @ samo_jax.upgrad_weights(jac @ jac.T, u),
            sum(nnls_projection(jac, row) for row in np.diag(u)),
            atol=1e-8 * scale,
        )


@pytest.mark.parametrize("num_tasks", mostly_slow([2, 10, 40], but={10}))
@pytest.mark.parametrize("name", mostly_slow(METHODS, but={"dualproj"}))
def test_no_conflict_in_float32(name, num_tasks):
    """Half as many parameters as tasks: rank-deficient, mostly Pareto-stationary."""
    for scale in (1e-10, 1.0, 1e10):
        for size in (num_tasks // 2, 2 * num_tasks + 3):
            jac = jacobian(num_tasks, size, scale=scale)
            weights = np.asarray(METHODS[name]((jac @ jac.T).astype(np.float32)))
            assert np.all(np.isfinite(weights))
            assert conflict(jac, weights) <= 1e-4


def two_tasks_cagrad(gramian, c):
    """Closed form on the segment between two gradients."""
    (a, b), (_, d) = gramian
    kappa = c * np.sqrt((a + 2 * b + d) / 4)
    p, r, ell = a + d - 2 * b, b - d, (a - d) / 2
    delta = max(a * d - b * b, 0)
    if kappa**2 * p > ell**2:
        x = (-ell * np.sqrt(delta) / np.sqrt(kappa**2 * p - ell**2) - r) / p
        x = np.clip(x, 0, 1)
    else:
        x = float(ell <= 0)
    w = np.array([x, 1 - x])
    return 0.5 + kappa / np.sqrt(w @ gramian @ w) * w


@pytest.mark.parametrize("c", mostly_slow([0.1, 0.5, 1.0, 2.0], but={0.5}))
def test_cagrad_with_two_tasks(c, x64):  # noqa: ARG001
    for seed in range(20):
        jac = jacobian(2, 5, spread=10, seed=seed)
        np.testing.assert_allclose(
            samo_jax.cagrad_weights(jac @ jac.T, c),
            two_tasks_cagrad(jac @ jac.T, c),
            rtol=1e-7,
        )


@pytest.mark.parametrize("c", mostly_slow([0.4, 1.5], but={0.4}))
def test_cagrad_beats_every_other_direction_of_its_ball(c, x64):  # noqa: ARG001
    """The worst task's rate is the best among random points of the simplex."""
    for seed in range(5):
        jac = jacobian(4, 9, spread=10, seed=seed)
        mean = jac.mean(axis=0)
        radius = c * np.linalg.norm(mean)
        direction = jac.T @ np.asarray(samo_jax.cagrad_weights(jac @ jac.T, c))
        assert np.linalg.norm(direction - mean) == pytest.approx(radius, rel=1e-9)
        points = np.random.default_rng(0).dirichlet(np.ones(4), size=20_000) @ jac
        others = mean + radius * points / np.linalg.norm(points, axis=1, keepdims=True)
        assert np.min(jac @ direction) >= np.max(np.min(others @ jac.T, axis=1)) - 1e-9


@pytest.mark.parametrize("c", mostly_slow([1.0, 1.5], but={1.0}))
def test_cagrad_is_dualproj_where_no_task_can_improve(c, x64):  # noqa: ARG001
    for seed in range(5):
        jac = jacobian(5, 3, spread=10, seed=seed)
        jac = np.vstack([jac, -jac[:2].sum(axis=0)])
        gramian = jac @ jac.T
        np.testing.assert_allclose(
            jac.T @ samo_jax.cagrad_weights(gramian, c),
            jac.T @ samo_jax.dualproj_weights(gramian),
            atol=1e-9,
        )


@pytest.mark.slow
def test_cagrad_rescales():
    gramian = J_BASE @ J_BASE.T
    plain = samo_jax.cagrad_weights(gramian, 0.5)
    for rescale, factor in enumerate([1, 1.25, 1.5]):
        weights = samo_jax.cagrad_weights(gramian, 0.5, rescale)
        np.testing.assert_allclose(weights * factor, plain, rtol=1e-6)


def test_cagrad_without_radius_is_the_mean():
    jac = jacobian(4, 9)
    np.testing.assert_allclose(
        samo_jax.cagrad_weights(jac @ jac.T, 0.0), [0.25] * 4, rtol=1e-6
    )


@pytest.mark.slow
def test_nash_keeps_its_weights_between_solves():
    nash_mtl = samo_jax.nash_mtl(update_every=3)
    state, found = nash_mtl.init(2), []
    for step in range(4):
        weights, state = nash_mtl.update((step + 1.0) * jnp.eye(2), state)
        found.append(float(weights[0]))
    np.testing.assert_allclose(found, [1, 1, 1, 0.5], rtol=1e-6)
