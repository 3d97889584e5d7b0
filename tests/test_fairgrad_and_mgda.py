"""FairGrad and MGDA against closed forms, brute force, SciPy and float64."""

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, root

import samo_jax

from tiers import mostly_slow

sizes = pytest.mark.parametrize(  # each a compilation
    "num_tasks", [2, 3, 5, 40, 200]
)
SCALES = [1e-10, 1.0, 1e10]
ALPHAS = [0.5, 1.0, 2.0]

fairgrad_weights = samo_jax.fairgrad_weights
mgda_weights = samo_jax.mgda_weights
METHODS = {
    "mgda": mgda_weights,
    **{f"fairgrad-{a}": partial(fairgrad_weights, alpha=a) for a in ALPHAS},
}


@pytest.fixture(params=mostly_slow(METHODS, but={"mgda", "fairgrad-0.5"}))
def method(request):
    return METHODS[request.param]


def random_gramian(num_tasks, *, spread=1e4, scale=1.0, rank=None, seed=0):
    """A float32 Gramian of gradients whose norms are spread over a factor."""
    rng = np.random.default_rng([seed, num_tasks])
    jacobian = rng.normal(size=(num_tasks, rank or 2 * num_tasks + 5))
    half = np.log10(spread) / 2
    jacobian *= scale * 10 ** rng.uniform(-half, half, size=(num_tasks, 1))
    return (jacobian @ jacobian.T).astype(np.float32)


def fairgrad_residual(gramian, weights, alpha):
    gramian, weights = np.asarray(gramian, float), np.asarray(weights, float)
    return np.max(np.abs((gramian @ weights) * weights ** (1 / alpha) - 1))


def in_float64(function, *args, **kwargs):
    with jax.enable_x64(True):
        args = [np.asarray(a, np.float64) if np.ndim(a) else a for a in args]
        return np.asarray(function(*args, **kwargs))


def spread_gramians(num_tasks, spreads):
    """One for each of the spreads, the scales and three seeds."""
    return np.stack(
        [
            random_gramian(num_tasks, spread=spread, scale=scale, seed=seed)
            for spread in spreads
            for scale in SCALES
            for seed in range(3)
        ]
    )


def solve_all(function, gramians):
    """In one program each, in float32 and float64, the second from the first."""
    solve = jax.vmap(function)
    return np.asarray(jax.jit(solve)(gramians), float), in_float64(
        jax.jit(solve), gramians
    )


@pytest.mark.slow
@sizes
def test_fairgrad_residual_in_float32(num_tasks):
    gramians = spread_gramians(num_tasks, [1e4])

    def of_all_alphas(gramian):
        return jax.vmap(partial(fairgrad_weights, gramian))(jnp.array(ALPHAS))

    for matrix, found, exact in zip(
        gramians, *solve_all(of_all_alphas, gramians), strict=True
    ):
        np.testing.assert_allclose(found, exact, rtol=1e-5)
        for alpha, weights, best in zip(ALPHAS, found, exact, strict=True):
            assert fairgrad_residual(matrix, best, alpha) <= 1e-9
            floor = fairgrad_residual(matrix, best.astype(np.float32), alpha)
            residual = fairgrad_residual(matrix, weights, alpha)
            assert residual <= max(1e-4, 10 * floor)


@pytest.mark.slow
@sizes
def test_mgda_optimality_in_float32(num_tasks):
    for spread in (1.0, 1e2, 1e4):
        gramians = spread_gramians(num_tasks, [spread])
        for gramian, weights, exact in zip(
            gramians.astype(float), *solve_all(mgda_weights, gramians), strict=True
        ):
            value, optimum = (w @ gramian @ w for w in (weights, exact))
            assert np.all(weights >= 0)
            assert np.sum(weights) == pytest.approx(1, rel=1e-6)
            assert optimum - np.min(gramian @ exact) <= 1e-10 * optimum
            assert value == pytest.approx(optimum, rel=1e-5)
            if spread <= 1e2:
                assert value - np.min(gramian @ weights) <= 1e-5 * value


def brute_force_min_norm(gramian):
    """The min-norm point by trying every support."""
    best = (np.inf, None)
    for size in range(1, len(gramian) + 1):
        for support in map(list, combinations(range(len(gramian)), size)):
            block = gramian[np.ix_(support, support)]
            solution = np.linalg.solve(block, np.ones(size))
            weights = np.zeros(len(gramian))
            weights[support] = solution / solution.sum()
            if np.all(weights >= 0):
                best = min(best, (weights @ gramian @ weights, tuple(weights)))
    return np.array(best[1])


@pytest.mark.parametrize("num_tasks", mostly_slow([1, 2, 3, 5], but={3}))
def test_mgda_against_brute_force(num_tasks, x64):  # noqa: ARG001
    for seed in range(5):
        gramian = random_gramian(num_tasks, spread=10, seed=seed).astype(float)
        np.testing.assert_allclose(
            samo_jax.mgda_weights(gramian), brute_force_min_norm(gramian), atol=1e-10
        )


@pytest.mark.parametrize(
    "alpha", mostly_slow([0.5, 1.0, 2.0, 4.0, 8.0], but={0.5, 2.0})
)
@pytest.mark.parametrize("num_tasks", mostly_slow([2, 5, 20], but={5}))
def test_fairgrad_against_scipy(num_tasks, alpha, x64):  # noqa: ARG001
    gramian = random_gramian(num_tasks, spread=10, rank=10 * num_tasks).astype(float)
    solution = root(
        lambda log_w: np.log(gramian @ np.exp(log_w)) + log_w / alpha,
        -np.log(np.diag(gramian)) * alpha / (1 + alpha),
        tol=1e-13,
    )
    np.testing.assert_allclose(
        samo_jax.fairgrad_weights(gramian, alpha), np.exp(solution.x), rtol=1e-9
    )


def two_task_gramian(correlation, norm_ratio):
    return np.array(
        [[1, correlation * norm_ratio], [correlation * norm_ratio, norm_ratio**2]]
    )


@pytest.mark.parametrize(
    "correlation", mostly_slow([-0.99, -0.5, 0.0, 0.7, 0.99], but={-0.99, 0.7})
)
@pytest.mark.parametrize("norm_ratio", [1.0, 3.0, 100.0])
def test_two_tasks_closed_forms(correlation, norm_ratio, x64):  # noqa: ARG001
    gramian = two_task_gramian(correlation, norm_ratio)
    (a, b), (_, c) = gramian
    first = np.clip((c - b) / (a + c - 2 * b), 0, 1)
    np.testing.assert_allclose(
        samo_jax.mgda_weights(gramian), [first, 1 - first], atol=1e-12
    )

    bisector = 1 / np.sqrt(np.diag(gramian) * (1 + correlation))
    np.testing.assert_allclose(
        samo_jax.fairgrad_weights(gramian, 1.0), bisector, rtol=1e-11
    )
    for alpha in (0.5, 2.0, 4.0):
        p = 1 / alpha
        ratio = np.exp(
            brentq(
                lambda t, p=p: (
                    c * np.exp((1 + p) * t) + b * np.exp(p * t) - b * np.exp(t) - a
                ),
                -20,
                20,
                xtol=1e-14,
            )
        )
        w1 = (a + b * ratio) ** (-1 / (1 + p))
        np.testing.assert_allclose(
            samo_jax.fairgrad_weights(gramian, alpha), [w1, ratio * w1], rtol=1e-9
        )


def test_one_task(method):
    weights = method(np.array([[4.0]]))
    expected = 1.0 if method is mgda_weights else None
    if expected is None:
        alpha = method.keywords["alpha"]
        expected = 4.0 ** (-alpha / (1 + alpha))
    np.testing.assert_allclose(weights, [expected], rtol=1e-6)


@pytest.mark.parametrize("factor", mostly_slow([1e-12, 0.3, 1e12], but=1))
def test_scaling_law(method, factor):
    """Scaling the Gramian by s^2 scales FairGrad by s^(-2 alpha / (1 + alpha))."""
    alpha = 0 if method is mgda_weights else method.keywords["alpha"]
    gramian = random_gramian(5, spread=1e2)
    scaled = method((gramian.astype(float) * factor).astype(np.float32))
    expected = np.asarray(method(gramian), float) * factor ** (-alpha / (1 + alpha))
    np.testing.assert_allclose(scaled, expected, rtol=1e-5, atol=1e-7)


def test_fairgrad_with_alpha_one_ignores_row_scales(x64):  # noqa: ARG001
    gramian = random_gramian(5, spread=1).astype(float)
    scales = np.array([1e-3, 1, 5, 70, 1e4])
    scaled = samo_jax.fairgrad_weights(gramian * np.outer(scales, scales), 1.0)
    np.testing.assert_allclose(
        scaled * scales, samo_jax.fairgrad_weights(gramian, 1.0), rtol=1e-10
    )


def degenerate(name, scale=1.0):
    rows = {
        "zero row": [[1, 2, 0], [0, 0, 0], [2, -1, 1]],
        "duplicates": [[1, 2, 0], [1, 2, 0], [2, -1, 1]],
        "opposite": [[1, 2, 0], [-1, -2, 0]],
        "opposite, unequal": [[1, 2, 0], [-100, -200, 0]],
        "rank one": [[1, 2, 3], [2, 4, 6], [0.5, 1, 1.5]],
        "stationary": [[1, 0, 0], [0, 1, 0], [-1, -1, 0]],
        "weakly stationary": [[1, 0, 0], [-1, 0, 0], [0, 1, 0]],
        "all zero": np.zeros((3, 3)),
        "more tasks than parameters": np.random.default_rng(0).normal(size=(40, 5)),
        "far more tasks": np.random.default_rng(0).normal(size=(200, 3)),
    }[name]
    jacobian = scale * np.asarray(rows, np.float32)
    return jacobian, jacobian @ jacobian.T


@pytest.mark.slow
def test_more_tasks_than_parameters(method):
    for name in ("more tasks than parameters", "far more tasks"):
        jacobian, gramian = degenerate(name)
        weights = method(gramian)
        assert np.all(weights >= 0)
        assert np.any(weights > 0)
        assert np.all(np.isfinite(jacobian.T @ weights))


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["opposite", "opposite, unequal", "stationary", "more tasks than parameters"],
        but={"opposite, unequal", "stationary"},
    ),
)
def test_mgda_direction_vanishes_at_stationary_points(name):
    jacobian, gramian = degenerate(name)
    weights = mgda_weights(gramian)
    length = np.linalg.norm(jacobian.T @ weights)
    assert length <= 1e-3 * np.min(np.linalg.norm(jacobian, axis=1))


def test_documented_answers_to_degenerate_gramians(method):
    np.testing.assert_array_equal(method(np.zeros((2, 2))), [0.5] * 2)

    _, gramian = degenerate("zero row")
    weights = np.asarray(method(gramian))
    assert weights[1] == 0
    np.testing.assert_allclose(weights[::2], method(gramian[::2, ::2]), rtol=1e-6)

    jacobian, gramian = degenerate("duplicates")
    direction = jacobian.T @ method(gramian)
    if method is mgda_weights:
        np.testing.assert_allclose(
            direction, jacobian[::2].T @ method(gramian[::2, ::2]), rtol=1e-5
        )
    alpha = method.keywords["alpha"] if method is not mgda_weights else None
    if alpha:
        rates = jacobian @ direction
        np.testing.assert_allclose(rates, method(gramian) ** (-1 / alpha), rtol=1e-4)


def test_rank_one_mgda_takes_the_shortest_gradient():
    weights = mgda_weights(degenerate("rank one")[1])
    np.testing.assert_allclose(weights, [0, 0, 1], atol=1e-6)


def test_info(method):
    gramian = random_gramian(5, spread=10)
    weights, info = method(gramian, return_info=True)
    np.testing.assert_array_equal(weights, method(gramian))
    assert info.converged
    assert info.finite
    assert info.residual <= 1e-5
    assert 1 <= info.steps <= 20

    _, info = method(degenerate("opposite")[1], return_info=True)
    assert info.converged == (method is mgda_weights)
    assert info.finite


def test_integer_and_asymmetric_input(method):
    np.testing.assert_allclose(
        method(np.array([[2, 1], [1, 3]])), method(np.array([[2, 0.5], [1.5, 3.0]]))
    )


matrices = st.tuples(
    st.sampled_from([2, 3, 5]), st.integers(0, 2**31), st.floats(-9, 9), st.floats(0, 4)
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(matrices)
def test_optimality_on_any_full_rank_gramian(drawn):
    num_tasks, seed, log_scale, log_spread = drawn
    gramian = random_gramian(
        num_tasks, spread=10**log_spread, scale=10**log_scale, seed=seed
    )
    exact = in_float64(samo_jax.mgda_weights, gramian)
    weights = np.asarray(mgda_weights(gramian), float)
    optimum = exact @ gramian.astype(float) @ exact
    assert weights @ gramian.astype(float) @ weights == pytest.approx(optimum, rel=1e-5)

    for alpha in ALPHAS:
        weights = fairgrad_weights(gramian, alpha)
        exact = in_float64(samo_jax.fairgrad_weights, gramian, alpha)
        np.testing.assert_allclose(weights, exact, rtol=1e-5)
