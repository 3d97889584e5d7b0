"""UPGrad, DualProj, CAGrad and Nash-MTL against NNLS, grids and closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

import samo_jax

METHODS = {
    "dualproj": samo_jax.dualproj_weights,
    "upgrad": samo_jax.upgrad_weights,
    "cagrad-0.4": partial(samo_jax.cagrad_weights, c=0.4),
    "cagrad-1.5": partial(samo_jax.cagrad_weights, c=1.5),
    "nash_mtl": samo_jax.nash_mtl_weights,
}
NON_CONFLICTING = ["dualproj", "upgrad", "cagrad-1.5", "nash_mtl"]
J_BASE = np.array([[-4.0, 1, 1], [6, 1, 1]])


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


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


@pytest.mark.parametrize("size", [1, 3, 7, 30])
@pytest.mark.parametrize("num_tasks", [1, 2, 5, 12])
def test_projections_against_nnls(num_tasks, size, x64):  # noqa: ARG001
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


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
@pytest.mark.parametrize("num_tasks", [2, 3, 10, 40])
@pytest.mark.parametrize("relative_size", [0.5, 2])
@pytest.mark.parametrize("name", NON_CONFLICTING)
def test_no_conflict_in_float32(name, relative_size, num_tasks, scale):
    """Half as many parameters as tasks: rank-deficient, mostly Pareto-stationary."""
    size = int(relative_size * num_tasks) + (3 if relative_size > 1 else 0)
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


@pytest.mark.parametrize("c", [0.1, 0.5, 1.0, 2.0])
def test_cagrad_with_two_tasks(c, x64):  # noqa: ARG001
    for seed in range(20):
        jac = jacobian(2, 5, spread=10, seed=seed)
        np.testing.assert_allclose(
            samo_jax.cagrad_weights(jac @ jac.T, c),
            two_tasks_cagrad(jac @ jac.T, c),
            rtol=1e-7,
        )


@pytest.mark.parametrize("c", [0.4, 1.5])
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


@pytest.mark.parametrize("c", [1.0, 1.5])
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


@pytest.mark.parametrize(
    "rows",
    [
        [[0, 0], [0, 0], [0, 0]],
        [[1, 2], [0, 0], [2, -1]],
        [[1, 2], [1, 2], [2, -1]],
        [[1, 2], [-1, -2]],
        [[1, 0], [0, 1], [-1, -1]],
        [[1, 2], [2, 4], [-3, -6]],
    ],
    ids=["zero", "zero-row", "duplicates", "opposite", "stationary", "rank-one"],
)
def test_degenerate_gramians_are_finite(method, rows):
    jac = np.asarray(rows, np.float32)
    weights = np.asarray(method(jac @ jac.T))
    assert np.all(np.isfinite(weights))
    assert np.all(weights[np.linalg.norm(jac, axis=1) == 0] <= 1 / len(jac) + 1e-6)
    np.testing.assert_array_equal(
        method(np.full((2, 2), np.nan)), np.full(2, 0.5, np.float32)
    )


def test_strict_promotion_and_vmap(method, strict):  # noqa: ARG001
    jacs = [jnp.asarray(jacobian(3, 5, seed=seed), jnp.float32) for seed in range(3)]
    gramians = jnp.stack([samo_jax.gramian(jac) for jac in jacs])
    np.testing.assert_allclose(
        jax.vmap(method)(gramians), [method(g) for g in gramians], rtol=1e-4
    )


def test_nash_keeps_its_weights_between_solves():
    solver = samo_jax.nash_mtl(update_every=3)
    state, seen = solver.init(2), []
    for step in range(4):
        weights, state = jax.jit(solver.update)((step + 1.0) * jnp.eye(2), state)
        seen.append(float(weights[0]))
    np.testing.assert_allclose(seen, [1, 1, 1, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: samo_jax.cagrad(-1), "`c` must be non-negative and finite, got -1"),
        (
            lambda: samo_jax.cagrad(0.5, 3),
            r"`rescale` must be one of \(0, 1, 2\), got 3",
        ),
        (lambda: samo_jax.nash_mtl(0), "`update_every` must be a positive int, got 0"),
        (
            lambda: samo_jax.upgrad([1, -1]),
            "`preference` must be finite and non-neg",
        ),
        (
            lambda: samo_jax.dualproj_weights(np.eye(2), np.ones(3)),
            r"`preference` must be one number per task, shape \(2,\), got shape \(3,\)",
        ),
        (lambda: samo_jax.upgrad_weights(np.ones((2, 3))), "`gramian` must have shape"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
