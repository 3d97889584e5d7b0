"""Formulas at points done by hand, fronts against comparing every pair."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samo_jax.experiments.studies.toy.landscapes import (
    LANDSCAPES,
    cagrad_losses,
    distance_to_front,
    grid,
    non_dominated,
    pareto_front,
    stacked_losses,
    valleys_losses,
)

front_of = functools.cache(lambda name: pareto_front(LANDSCAPES[name]))

TANH_1, TANH_4 = 0.7615941559557649, 0.999329299739067


@pytest.mark.parametrize(
    ("params", "a", "b"),
    [
        # c = 0: d times the bowls alone, (7 - 7)^2 and (7 + 7)^2.
        ((7, -8), -20 * TANH_4, -0.4 * TANH_4),
        # d = 0: |(-7 + 7) / 2 - tanh 2| and |(-7 - 3) / 2 + tanh 2 - 2|.
        (
            (-7, 2),
            TANH_1 * (np.log(np.tanh(2)) + 6),
            TANH_1 * (np.log(7 - np.tanh(2)) + 6),
        ),
        ((3, 0), 0, 0),
    ],
)
def test_cagrad_by_hand(params, a, b):
    losses = cagrad_losses(params)
    np.testing.assert_allclose([losses["a"], losses["b"]], [a, b], rtol=1e-5)


def test_cagrad_is_bounded_in_the_valley():
    y = 8.0  # tanh is 1 - 2e-7 here, so that x = -5 is within 5e-6 of the singularity
    loss = cagrad_losses((-5.0, y))["a"]
    np.testing.assert_allclose(loss, np.tanh(4) * (np.log(5e-6) + 6), rtol=1e-6)


@pytest.mark.parametrize(
    ("params", "a", "b"),
    [
        ((-1, 1), 0, 2),  # the sharp valley
        ((1.5, 1), 0, 2),  # the flat one
        ((-1, 0), 0.5, 0.5),
        ((1.5, 0), 0.5, 0.5),
        ((-1.2, -1), 10 * 0.04 + 2, 10 * 0.04),
        ((2.5, -1), 0.5 + 2, 0.5),
    ],
)
def test_valleys_by_hand(params, a, b):
    losses = valleys_losses(params)
    np.testing.assert_allclose([losses["a"], losses["b"]], [a, b], atol=1e-6)


@pytest.mark.parametrize(("x", "curvature"), [(-1.0, 20), (1.5, 1)])
def test_valleys_are_sharp_and_flat(x, curvature):
    for hessian in jax.jit(jax.hessian(valleys_losses))(jnp.array([x, 0])).values():
        np.testing.assert_allclose(hessian, np.diag([curvature, 1.0]), atol=1e-4)


@pytest.mark.parametrize("landscape", LANDSCAPES.values(), ids=LANDSCAPES)
def test_gradients_are_finite(landscape):
    points = np.concatenate([grid(landscape, 201).reshape(-1, 2), landscape.starts])
    for grads in jax.jit(jax.vmap(jax.jacobian(landscape.losses)))(points).values():
        assert np.all(np.isfinite(grads))


@pytest.mark.parametrize("name", LANDSCAPES)
def test_starts_are_in_the_domain_and_off_the_front(name):
    landscape = LANDSCAPES[name]
    starts = landscape.starts
    assert np.all((landscape.low < starts) & (starts < landscape.high))
    distance = distance_to_front(stacked_losses(landscape, starts), front_of(name))
    assert np.mean(distance > 0.1) > 0.5


def test_non_dominated_against_all_pairs():
    losses = np.random.default_rng(0).integers(0, 12, (150, 2)) / 4
    as_good = np.all(losses[:, None] <= losses, axis=-1)
    better = np.any(losses[:, None] < losses, axis=-1)
    expected = ~np.any(as_good & better, axis=0)
    assert 0 < expected.sum() < len(losses)
    np.testing.assert_array_equal(non_dominated(losses), expected)


@pytest.mark.parametrize("name", LANDSCAPES)
def test_no_random_point_dominates_the_front(name):
    landscape = LANDSCAPES[name]
    points = np.random.default_rng(0).uniform(landscape.low, landscape.high, (3000, 2))
    losses = stacked_losses(landscape, points.astype(np.float32))
    better = np.all(losses[:, None] < front_of(name).losses - 0.01, axis=-1)
    assert not np.any(better)


def test_front_of_valleys_has_two_branches():
    front = front_of("valleys")
    for x in (-1.0, 1.5):
        y = front.params[np.isclose(front.params[:, 0], x, atol=1e-5), 1]
        np.testing.assert_allclose([y.min(), y.max()], [-1, 1], atol=0.01)
        assert np.max(np.diff(np.sort(y))) < 0.01
    flat = LANDSCAPES["valleys"].is_flat(front.params)
    np.testing.assert_allclose(np.mean(flat), 0.5, atol=0.01)
    # On either, losses are (y - 1)^2 / 2 and (y + 1)^2 / 2.
    np.testing.assert_allclose(np.sqrt(2 * front.losses).sum(-1), 2, atol=1e-3)


def test_front_of_cagrad_is_between_the_bowls():
    front = front_of("cagrad")
    x, y = front.params.T
    np.testing.assert_allclose([x.min(), x.max()], [-7, 7], atol=0.05)
    assert np.all((y > -8.5) & (y < -8))


def test_distance_to_front():
    front = front_of("valleys")
    np.testing.assert_allclose(distance_to_front(front.losses, front), 0)
    # The curve sqrt a + sqrt b = sqrt 2 is nearest to the origin at (1/2, 1/2).
    distance = distance_to_front([[0, 0], [0, 2.5], [-3, 2]], front)
    np.testing.assert_allclose(distance, [0.5**0.5, 0.5, 3], atol=1e-4)
