"""Optimality of the exact solvers on any float32 Gramian, measured in float64.

Residuals are those of the Gramian as given, `(G w)_i` in units of `n_i sum_j |w_j| n_j`
with the gradient norms n: the size of its terms, which cancel at stationary points.
"""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import samo_jax

TOLERANCE = 1e-5
searching = settings(max_examples=60, deadline=None, derandomize=True)


def gramian(num_tasks, rank, log_spread, log_scale, copies, seed):
    """Of gradients of any rank, of spread norms, some of them copies up to sign."""
    rng = np.random.default_rng(seed)
    jac = rng.normal(size=(num_tasks, min(rank, 2 * num_tasks)))
    if copies:
        signs = rng.choice([-1, 1], size=(num_tasks, 1))
        copied = rng.uniform(size=(num_tasks, 1)) < 0.4
        jac = np.where(
            copied, signs * jac[rng.integers(num_tasks, size=num_tasks)], jac
        )
    jac *= 10 ** rng.uniform(log_scale, log_scale + log_spread, size=(num_tasks, 1))
    return (jac @ jac.T).astype(np.float32)


gramians = st.builds(
    gramian,
    num_tasks=st.sampled_from([2, 5, 20]),
    rank=st.integers(1, 40),
    log_spread=st.floats(0, 4),
    log_scale=st.floats(-6, 4),
    copies=st.booleans(),
    seed=st.integers(0, 2**31),
)


def double(*arrays):
    return [np.asarray(array, float) for array in arrays]


def lengths(matrix, weights):
    """Of the terms of d: `|w_i| n_i`, and those of `G w`."""
    norms = np.sqrt(np.diag(matrix))
    terms = np.abs(weights) * norms
    return terms, norms * np.sum(terms)


def dual_cone_residual(matrix, preference, weights):
    """Of `w >= u`, `G w >= 0`, one of them an equality: both in relative units."""
    matrix, preference, weights = double(matrix, preference, weights)
    terms, sizes = lengths(matrix, weights)
    excess, _ = lengths(matrix, weights - preference)
    excess = np.copysign(excess, weights - preference) / np.sum(terms)
    return np.max(np.abs(np.minimum(excess, matrix @ weights / sizes)))


@searching
@given(gramians)
def test_mgda(matrix):
    matrix, weights = double(matrix, samo_jax.mgda_weights(matrix))
    assert np.all(weights >= 0)
    assert np.sum(weights) == pytest.approx(1, abs=1e-6)
    products, (_, sizes) = matrix @ weights, lengths(matrix, weights)
    assert np.max((weights @ products - products) / sizes) <= TOLERANCE


@searching
@given(gramians)
@pytest.mark.slow
def test_dualproj(matrix):
    preference = np.linspace(0.1, 1, len(matrix), dtype=np.float32)
    weights = samo_jax.dualproj_weights(matrix, preference)
    assert dual_cone_residual(matrix, preference, weights) <= TOLERANCE


@pytest.mark.slow
@searching
@given(gramians)
def test_upgrad(matrix):
    """The sum of the projections of the tasks' gradients, one by one."""
    preferences = np.diag(np.linspace(0.1, 1, len(matrix), dtype=np.float32))
    parts = [samo_jax.dualproj_weights(matrix, row) for row in preferences]
    for preference, weights in zip(preferences, parts, strict=True):
        assert dual_cone_residual(matrix, preference, weights) <= TOLERANCE
    weights = samo_jax.upgrad_weights(matrix, np.diag(preferences))
    np.testing.assert_allclose(weights, np.sum(parts, axis=0), rtol=1e-5)


@pytest.mark.slow
@searching
@given(gramians, st.sampled_from([0.4, 1.0, 2.0]))
def test_cagrad(matrix, c):
    """`min_i <g_i, d>` against the bound that each point of the simplex gives."""
    answer, info = samo_jax.cagrad_weights(matrix, c, return_info=True)
    matrix, weights, stationary = double(matrix, answer, samo_jax.mgda_weights(matrix))
    mean = np.full(len(matrix), 1 / len(matrix))
    norms = np.sqrt(np.diag(matrix))
    condition = np.linalg.eigvalsh(matrix / np.outer(norms, norms))[0]
    assert np.all(np.isfinite(weights))
    assert np.all(weights >= mean * (1 - 1e-6))
    if not info.converged:
        # Stationary or dependent to working precision.
        assert condition < 1e-5
        return

    def length(v):
        return np.sqrt(max(v @ matrix @ v, 0))

    def bound(v):
        return v @ matrix @ mean + c * length(mean) * length(v)

    moved = np.maximum(weights - mean, 0)
    terms, sizes = lengths(matrix, weights)
    assert length(moved) <= c * length(mean) + TOLERANCE * np.sum(terms)
    candidates = [stationary]
    if np.any(moved):
        candidates.append(moved / np.sum(moved))
    gap = min(map(bound, candidates)) - matrix @ weights
    assert np.max(gap / sizes) <= TOLERANCE


@pytest.mark.slow
@searching
@given(gramians, st.sampled_from([0.5, 1.0, 2.0]))
def test_fairgrad(matrix, alpha):
    """Or as good as half a unit in the last place of the exact weights allows."""
    answer = samo_jax.fairgrad_weights(matrix, alpha)
    if alpha == 1:
        np.testing.assert_array_equal(samo_jax.nash_mtl_weights(matrix), answer)
    matrix, weights = double(matrix, answer)
    with jax.enable_x64(True):
        exact, info = samo_jax.fairgrad_weights(matrix, alpha, return_info=True)
    assert np.all(np.isfinite(weights))
    assert np.all(weights > 0)
    if info.converged:
        exact = np.asarray(exact)
        cancellation = np.max(np.abs(matrix) @ exact * exact ** (1 / alpha))
        floor = np.finfo(np.float32).eps / 2 * cancellation
        residual = np.max(np.abs((matrix @ weights) * weights ** (1 / alpha) - 1))
        assert residual <= max(1e-4, 10 * floor)
