"""Gramian methods against full-gradient NumPy oracles, closed forms and properties."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samo_jax import (
    Weighting,
    aligned_mtl_weights,
    conflict_free_inverse_weights,
    constant,
    db_mtl,
    db_mtl_weights,
    gradnorm,
    gradvac,
    gradvac_weights,
    imtl_g,
    imtl_g_weights,
    krum_weights,
    mgda,
    pcgrad,
    pcgrad_weights,
    random_weights,
    smoothed,
    total,
)

from tiers import mostly_slow

KEY = 7


def _targets(num_tasks):
    return np.random.default_rng(3).uniform(-0.5, 0.5, (num_tasks, num_tasks))


def _losses(num_tasks):
    return np.linspace(0.5, 2.0, num_tasks)


# Functions of the Gramian alone.
METHODS = {
    "pcgrad": lambda g: pcgrad_weights(g, jax.random.key(KEY)),
    "gradvac": lambda g: gradvac_weights(g, _targets(len(g)), jax.random.key(KEY))[0],
    "imtl_g": imtl_g_weights,
    "aligned_mtl-min": aligned_mtl_weights,
    "aligned_mtl-median": partial(aligned_mtl_weights, scale_mode="median"),
    "aligned_mtl-rmse": partial(aligned_mtl_weights, scale_mode="rmse"),
    "conflict_free_inverse": conflict_free_inverse_weights,
    "krum": lambda g: krum_weights(g, 0 if len(g) < 4 else 1, min(2, len(g))),
    "db_mtl": lambda g: db_mtl_weights(g, _losses(len(g))),
}
WEIGHTINGS = {
    "constant": constant([0.2, 0.3, 0.5]),
    "random_weights": random_weights(KEY),
    "pcgrad": pcgrad(KEY),
    "gradvac": gradvac(KEY),
    "gradnorm": gradnorm(),
}


def random_jacobian(num_tasks, size=None, spread=10.0, seed=0):
    rng = np.random.default_rng([seed, num_tasks])
    jacobian = rng.normal(size=(num_tasks, size or 2 * num_tasks + 5))
    half = np.log10(spread) / 2
    return jacobian * 10 ** rng.uniform(-half, half, size=(num_tasks, 1))


def single(jacobian):
    return (jacobian @ jacobian.T).astype(np.float32)


def orders(key, num_tasks):
    keys = jax.random.split(key, num_tasks)
    return [np.asarray(jax.random.permutation(k, num_tasks)) for k in keys]


def oracle_pcgrad(jacobian):
    rows = []
    for i, order in enumerate(orders(jax.random.key(KEY), len(jacobian))):
        row = jacobian[i]
        for j in order:
            product = row @ jacobian[j]
            if j != i and product < 0:
                row = row - product / (jacobian[j] @ jacobian[j]) * jacobian[j]
        rows.append(row)
    return np.mean(rows, axis=0)


def oracle_gradvac(jacobian, targets=None, cosines=None):
    targets = _targets(len(jacobian)) if targets is None else targets
    rows = []
    for i, order in enumerate(orders(jax.random.key(KEY), len(jacobian))):
        row = jacobian[i]
        for j in order:
            if j == i:
                continue
            length, other = np.linalg.norm(row), np.linalg.norm(jacobian[j])
            phi, target = row @ jacobian[j] / (length * other), targets[i, j]
            if cosines is not None:
                cosines[i, j] = phi
            if phi < target:
                sine, target_sine = np.sqrt(1 - phi**2), np.sqrt(1 - target**2)
                step = length * (target * sine - phi * target_sine)
                row = row + step / (other * target_sine) * jacobian[j]
        rows.append(row)
    return np.mean(rows, axis=0)


def oracle_imtl_g(jacobian):
    """The published elimination: weights of tasks 2..K from differences to task 1."""
    units = jacobian / np.linalg.norm(jacobian, axis=1, keepdims=True)
    differences, unit_differences = jacobian[0] - jacobian[1:], units[0] - units[1:]
    rest = np.linalg.solve(
        (differences @ unit_differences.T).T, unit_differences @ jacobian[0]
    )
    return np.concatenate([[1 - rest.sum()], rest]) @ jacobian


def oracle_aligned(jacobian, mode):
    """All singular values of the gradient matrix become equal."""
    left, values, right = np.linalg.svd(jacobian, full_matrices=False)
    squares = np.sort(values**2)
    middle = squares[(len(squares) - 1) // 2]
    scale = {"min": squares[0], "median": middle, "rmse": squares.mean()}[mode]
    return np.sqrt(scale) * np.mean(left @ right, axis=0)


def oracle_config(jacobian, preference=None):
    units = jacobian / np.linalg.norm(jacobian, axis=1, keepdims=True)
    if preference is None:
        preference = np.ones(len(jacobian))
    direction = np.linalg.pinv(units) @ preference
    direction /= np.linalg.norm(direction)
    return np.mean(jacobian @ direction) * direction


def oracle_krum(jacobian):
    num_tasks = len(jacobian)
    byzantine = 0 if num_tasks < 4 else 1
    distances = np.sum((jacobian[:, None] - jacobian[None]) ** 2, axis=2)
    scores = [
        np.sort(np.delete(row, i))[: num_tasks - byzantine - 2].sum()
        for i, row in enumerate(distances)
    ]
    return np.mean(jacobian[np.argsort(scores, kind="stable")[:2]], axis=0)


def oracle_db_mtl(jacobian):
    scaled = jacobian / _losses(len(jacobian))[:, None]
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.mean(norms.max() / norms * scaled, axis=0)


ORACLES = {
    "pcgrad": oracle_pcgrad,
    "gradvac": oracle_gradvac,
    "imtl_g": oracle_imtl_g,
    "aligned_mtl-min": partial(oracle_aligned, mode="min"),
    "aligned_mtl-median": partial(oracle_aligned, mode="median"),
    "aligned_mtl-rmse": partial(oracle_aligned, mode="rmse"),
    "conflict_free_inverse": oracle_config,
    "krum": oracle_krum,
    "db_mtl": oracle_db_mtl,
}


@pytest.mark.parametrize("name", METHODS)
def test_directions_against_full_gradients(name, x64):  # noqa: ARG001
    for seed in range(5):
        jacobian = random_jacobian(6, spread=30, seed=seed)
        weights = METHODS[name](jacobian @ jacobian.T)
        expected = ORACLES[name](jacobian)
        np.testing.assert_allclose(
            weights @ jacobian, expected, atol=1e-9 * np.linalg.norm(expected)
        )


@pytest.mark.parametrize("name", mostly_slow(METHODS, but={"pcgrad", "imtl_g"}))
def test_float32_at_all_scales(name):
    """Weights do not change with the scale, and float32 is close to float64."""
    jacobian = random_jacobian(6, spread=20)
    expected = ORACLES[name](jacobian)
    for scale in (1e-10, 1.0, 1e10):
        weights = METHODS[name](single(scale * jacobian))
        assert weights.dtype == np.float32
        error = np.linalg.norm(weights @ jacobian - expected)
        assert error <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    "correlation", mostly_slow([-0.99, -0.3, 0.0, 0.8], but={-0.99, 0.8})
)
@pytest.mark.parametrize("ratio", mostly_slow([1.0, 50.0], but={1.0}))
def test_two_tasks_closed_forms(correlation, ratio, x64):  # noqa: ARG001
    a, b, c = 1.0, correlation * ratio, ratio**2
    gramian = np.array([[a, b], [b, c]])
    np.testing.assert_allclose(
        imtl_g_weights(gramian), np.array([ratio, 1]) / (1 + ratio), rtol=1e-9
    )
    np.testing.assert_allclose(
        METHODS["pcgrad"](gramian),
        [(1 - min(b, 0) / a) / 2, (1 - min(b, 0) / c) / 2],
        rtol=1e-12,
    )
    root = np.sqrt(a * c - b * b)
    half = (gramian + root * np.eye(2)) / np.sqrt(a + c + 2 * root)
    smallest = np.linalg.eigvalsh(gramian)[0]
    np.testing.assert_allclose(
        aligned_mtl_weights(gramian),
        np.sqrt(smallest) * np.linalg.solve(half, [0.5, 0.5]),
        rtol=1e-7,
    )
    # The direction of the unit gradients' bisector.
    weights = conflict_free_inverse_weights(gramian)
    np.testing.assert_allclose(weights[0] / weights[1], ratio, rtol=1e-9)


def test_conflict_free_inverse_prescribes_cosines(x64):  # noqa: ARG001
    jacobian = random_jacobian(5)
    preference = np.array([1.0, 2, 3, 4, 5])
    weights = conflict_free_inverse_weights(jacobian @ jacobian.T, 10 * preference)
    direction = weights @ jacobian
    np.testing.assert_allclose(direction, oracle_config(jacobian, preference))
    cosines = jacobian @ direction / np.linalg.norm(jacobian, axis=1)
    np.testing.assert_allclose(cosines / cosines[0], preference, rtol=1e-9)


@pytest.mark.slow
def test_aligned_mtl_preference(x64):  # noqa: ARG001
    jacobian = random_jacobian(3)
    gramian, preference = jacobian @ jacobian.T, np.array([0.5, 0.2, 0.3])
    values, vectors = np.linalg.eigh(gramian)
    expected = vectors @ (np.sqrt(values[0] / values) * (vectors.T @ preference))
    np.testing.assert_allclose(
        aligned_mtl_weights(gramian, preference=preference), expected, rtol=1e-9
    )


def test_imtl_g_reports_ascent():
    """Found by search: sum(v) < 0, so that every task ascends."""
    for seed in range(200):
        jacobian = random_jacobian(3, size=3, spread=100, seed=seed)
        units = jacobian / np.linalg.norm(jacobian, axis=1, keepdims=True)
        y = np.linalg.solve(units @ units.T, np.ones(3))
        if np.sum(y / np.linalg.norm(jacobian, axis=1)) < 0:
            break
    weighting = imtl_g()
    weights, state = weighting.update(single(jacobian), weighting.init(3))
    assert np.all(jacobian @ (weights @ jacobian) < 0)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(state.info.residual, 2, atol=1e-3)
    assert not state.info.converged
    assert state.info.finite


DEGENERATE = {
    "zero row": [[1, 2, 0], [0, 0, 0], [2, -1, 1]],
    "duplicates": [[1, 2, 0], [1, 2, 0], [2, -1, 1]],
    "opposite": [[1, 2, 0], [-1, -2, 0], [0, 0, 0]],
    "opposite, unequal": [[1, 2, 0], [-100, -200, 0], [1, 2, 0]],
    "rank one": [[1, 2, 3], [2, 4, 6], [0.5, 1, 1.5]],
    "stationary": [[1, 0, 0], [0, 1, 0], [-1, -1, 0]],
    "all zero": np.zeros((3, 3)),
    "many": np.random.default_rng(0).normal(size=(6, 3)),
}


@pytest.mark.parametrize("name", mostly_slow(METHODS, but={"imtl_g", "pcgrad"}))
def test_zero_gradients_are_left_out(name):
    weights = METHODS[name](np.zeros((3, 3), np.float32))
    np.testing.assert_allclose(weights, [1 / 3] * 3, rtol=1e-6)
    jacobian = np.asarray(DEGENERATE["zero row"], float)
    weights = METHODS[name](single(jacobian))
    assert weights[1] == 0
    if name in ("imtl_g", "conflict_free_inverse"):
        others = METHODS[name](single(jacobian[::2]))
        share = 1 if name == "imtl_g" else 2 / 3
        np.testing.assert_allclose(weights[::2], share * others, rtol=1e-5)


def test_opposite_gradients_cancel():
    for name in ("imtl_g", "conflict_free_inverse"):
        for rows in ("opposite", "opposite, unequal"):
            jacobian = np.asarray(DEGENERATE[rows], float)[:2]
            direction = METHODS[name](single(jacobian)) @ jacobian
            np.testing.assert_allclose(direction, 0, atol=1e-4)


def test_db_mtl_needs_positive_losses():
    weighting = db_mtl()
    gramian = single(random_jacobian(3))
    weights, state = weighting.update(gramian, weighting.init(3), losses=jnp.ones(3))
    for losses in ([1.0, -1, 1], [1.0, 0, 1], [1.0, np.nan, 1]):
        kept, after = weighting.update(gramian, state, losses=jnp.array(losses))
        np.testing.assert_array_equal(kept, weights)
        assert not after.info.finite
    # A task without gradient has no need of a loss.
    gramian[1, :] = gramian[:, 1] = 0
    _, after = weighting.update(gramian, state, losses=jnp.array([1.0, 0, 1]))
    assert after.info.finite


def test_krum_leaves_outliers_out():
    jacobian = np.random.default_rng(0).normal(size=(6, 4)) * 0.1 + 1
    jacobian[2] *= -100
    assert krum_weights(single(jacobian), 1, 5)[2] == 0
    # Duplicates: rounding never makes a distance negative.
    duplicates = np.repeat(jacobian[:1] * 1e3, 4, axis=0)
    np.testing.assert_array_equal(krum_weights(single(duplicates), 1), [1, 0, 0, 0])


def test_gradvac_averages_cosines(x64):  # noqa: ARG001
    jacobian = random_jacobian(4)
    gramian = jacobian @ jacobian.T
    weighting = gradvac(KEY, beta=0.3)
    state = weighting.init(4)
    targets = np.zeros((4, 4))
    for step in range(3):
        cosines = np.zeros((4, 4))
        drawn = jax.random.fold_in(jax.random.key(KEY), step)
        with pytest.MonkeyPatch.context() as patch:
            key_orders = orders(drawn, 4)
            patch.setitem(globals(), "orders", lambda *_, o=key_orders: o)
            expected = oracle_gradvac(jacobian, targets, cosines)
        weights, state = weighting.update(gramian, state)
        np.testing.assert_allclose(weights @ jacobian, expected, rtol=1e-9)
        targets = 0.7 * targets + 0.3 * cosines
        np.testing.assert_allclose(state.memory.targets, targets, atol=1e-12)


@pytest.mark.slow
def test_gradvac_stays_finite_on_duplicates():
    weighting = gradvac(KEY)
    update = jax.jit(weighting.update)
    state = weighting.init(3)
    gramian = single(np.asarray(DEGENERATE["duplicates"], float))
    for _ in range(60):
        weights, state = update(gramian, state)
    assert np.all(np.isfinite(weights))
    assert np.max(weights) < 10
    assert np.all(np.abs(state.memory.targets) <= 1)


def test_gradnorm_against_autodiff(x64):  # noqa: ARG001
    """The step is the gradient of the published objective, in units of its mean."""
    jacobian = random_jacobian(4)
    norms = np.linalg.norm(jacobian, axis=1)
    weighting = gradnorm(alpha=1.5, learning_rate=0.2)
    update = jax.jit(weighting.update)
    state = weighting.init(4)
    initial = _losses(4)
    logits = jnp.zeros(4)
    for step in range(4):
        losses = initial * np.array([1, 0.9, 0.5, 0.7]) ** step
        weights, state = update(jacobian @ jacobian.T, state, losses=losses)
        np.testing.assert_allclose(weights, jax.nn.softmax(logits), rtol=1e-9)
        ratios = losses / initial
        average = jnp.mean(jax.nn.softmax(logits) * norms)
        targets = average * (ratios / ratios.mean()) ** 1.5
        gradient = jax.grad(
            lambda s, t=targets: jnp.sum(jnp.abs(jax.nn.softmax(s) * norms - t))
        )(logits)
        logits = logits - 0.2 * gradient / average


@pytest.mark.parametrize("bad", ["gramian", "loss", "first loss"])
def test_gradnorm_keeps_its_state_on_bad_input(bad):
    weighting = WEIGHTINGS["gradnorm"]
    update = jax.jit(weighting.update)
    gramian, losses = single(random_jacobian(3)), jnp.ones(3)
    state = weighting.init(3)
    if bad != "first loss":
        _, state = update(gramian, state, losses=losses)
    if bad == "gramian":
        gramian = gramian * np.nan
    else:
        losses = losses.at[0].set(jnp.nan)
    weights, after = update(gramian, state, losses=losses)
    assert np.all(np.isfinite(weights))
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_smoothed_is_a_moving_average():
    weighting = smoothed(mgda(), decay=0.75)
    state = weighting.init(3)
    average = None
    for seed in range(4):
        gramian = single(random_jacobian(3, seed=seed))
        inner, _ = mgda().update(gramian, mgda().init(3))
        inner = np.asarray(inner, float)
        average = inner if average is None else 0.75 * average + 0.25 * inner
        weights, state = weighting.update(gramian, state, losses=jnp.ones(3))
        np.testing.assert_allclose(weights, average, rtol=1e-5)


def test_smoothed_ignores_non_finite_weights():
    bad = Weighting(lambda _: (), lambda g, s, **_: (g[0], s))
    weighting = smoothed(bad)
    first, state = weighting.update(jnp.eye(3), weighting.init(3))
    weights, _ = weighting.update(jnp.full((3, 3), jnp.nan), state)
    np.testing.assert_array_equal(weights, first)


@pytest.mark.parametrize(
    "name", mostly_slow(["random_weights", "pcgrad", "gradvac"], but=1)
)
def test_draws_depend_on_key_and_step(name):
    weighting = WEIGHTINGS[name]
    gramian = single(random_jacobian(3, size=2, seed=5))
    runs = []
    for _ in range(2):
        state, seen = weighting.init(3), []
        for _ in range(8):
            weights, state = weighting.update(gramian, state)
            seen.append(np.asarray(weights))
        runs.append(np.stack(seen))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert len(np.unique(runs[0], axis=0)) > 1
    assert state.draws == 8
    assert jnp.array_equal(state.draw_key, weighting.init(3).draw_key)


def test_fixed_and_random_weights():
    gramian = jnp.eye(3)
    np.testing.assert_array_equal(total().update(gramian, ())[0], [1, 1, 1])
    weights, _ = WEIGHTINGS["constant"].update(gramian, ())
    np.testing.assert_allclose(weights, [0.2, 0.3, 0.5])
    weights, _ = WEIGHTINGS["random_weights"].update(
        gramian, WEIGHTINGS["random_weights"].init(3)
    )
    assert np.all(weights > 0)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
