"""Preferences of `mgda`, `cagrad`, `fairgrad` and `nash_mtl`, against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import samo_jax

from tiers import mostly_slow

PREFERENCE = np.array([1.0, 4.0, 2.0])
FACTORIES = {
    "mgda": samo_jax.mgda,
    "mgda-l2": lambda **p: samo_jax.mgda("l2", **p),
    "mgda-loss+": lambda **p: samo_jax.mgda("loss+", **p),
    "cagrad": samo_jax.cagrad,
    "cagrad-1.5": lambda **p: samo_jax.cagrad(1.5, **p),
    "fairgrad-0.5": lambda **p: samo_jax.fairgrad(0.5, **p),
    "fairgrad-2": lambda **p: samo_jax.fairgrad(2.0, **p),
    "nash_mtl": samo_jax.nash_mtl,
}
QUICK = ["mgda"]


def gradients(seed, num_tasks=3):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num_tasks, 5)) + 0.3
    return rows * 10 ** rng.uniform(-0.5, 0.5, (num_tasks, 1))


def weights_of(combiner, rows, present=None):
    losses = jnp.linspace(0.5, 2, len(rows))
    state = combiner.init(len(rows))
    gramian = samo_jax.gramian(jnp.asarray(rows, float))
    weights, state = combiner.update(gramian, state, losses=losses, present=present)
    return np.asarray(weights)


def direction(combiner, rows):
    return weights_of(combiner, rows) @ rows


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def best_worst_case(rows, feasible):
    """`argmax_d min_i <row_i, d>` over a convex set of directions, by SLSQP."""
    start = np.zeros(rows.shape[1] + 1)
    constraints = [
        {"type": "ineq", "fun": lambda x: rows @ x[:-1] - x[-1]},
        {"type": "ineq", "fun": lambda x: feasible(x[:-1])},
    ]
    found = minimize(
        lambda x: -x[-1],
        start + 0.01,
        constraints=constraints,
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    return found.x[:-1]


@pytest.mark.parametrize("seed", mostly_slow(range(5), but=[0]))
def test_rates_of_mgda_follow_the_preference(seed):
    rows = gradients(seed)
    found = direction(samo_jax.mgda(preference=PREFERENCE), rows)
    wanted = best_worst_case(rows / PREFERENCE[:, None], lambda d: 1 - d @ d)
    assert np.linalg.norm(found) > 0
    found, wanted = (d / np.linalg.norm(d) for d in (found, wanted))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    least = np.min(rows @ found / PREFERENCE)
    assert least >= np.min(rows @ wanted / PREFERENCE) - 1e-10


def test_a_task_that_mgda_does_not_prefer_is_not_hurt():
    rows = np.array([[1.0, 0, 0], [-1, 1, 0], [0, 0, 1]])
    found = direction(samo_jax.mgda(preference=[1, 0, 1]), rows)
    np.testing.assert_allclose(found / found[0], [1, 1, 1], atol=1e-12)


@pytest.mark.parametrize("c", mostly_slow([0.4, 1.0], but=[1.0]))
@pytest.mark.parametrize("seed", mostly_slow(range(5), but=[0]))
def test_cagrad_is_the_best_worst_case_around_the_preferred_mean(seed, c):
    rows = gradients(seed)
    mean = PREFERENCE / PREFERENCE.sum() @ rows
    radius = c * np.linalg.norm(mean)
    found = direction(samo_jax.cagrad(c, preference=PREFERENCE), rows)
    wanted = best_worst_case(rows, lambda d: radius**2 - (d - mean) @ (d - mean))
    assert np.linalg.norm(found - mean) <= radius * (1 + 1e-9)
    np.testing.assert_allclose(np.min(rows @ found), np.min(rows @ wanted), rtol=1e-6)
    np.testing.assert_allclose(found, wanted, atol=1e-3 * radius)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", mostly_slow([0.5, 1.0, 2.0], but=[1.0]))
@pytest.mark.parametrize("seed", mostly_slow(range(3), but=[0]))
def test_fairgrad_maximises_preferred_utilities(seed, alpha):
    rows = gradients(seed)
    preference = PREFERENCE / PREFERENCE.mean()

    def utility(u):
        return np.log(u) if alpha == 1 else u ** (1 - alpha) / (1 - alpha)

    def objective(d):
        rates = rows @ d
        if np.min(rates) <= 0:
            return np.inf
        return d @ d / 2 - preference @ utility(rates)

    combiner = samo_jax.fairgrad(alpha, preference=PREFERENCE)
    found = direction(combiner, rows)
    start = np.linalg.pinv(rows) @ np.ones(3)
    options = {"xatol": 1e-10, "fatol": 1e-14, "maxiter": 10**5, "maxfev": 10**5}
    wanted = minimize(objective, start, method="Nelder-Mead", options=options)
    wanted = minimize(objective, wanted.x, method="Nelder-Mead", options=options)
    np.testing.assert_allclose(found, wanted.x, atol=1e-4 * np.linalg.norm(found))
    if alpha == 1:
        nash = direction(samo_jax.nash_mtl(preference=PREFERENCE), rows)
        np.testing.assert_allclose(nash, found, rtol=1e-12)
        np.testing.assert_allclose(found @ found, 3)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_orthogonal_gradients_have_fair_rates(alpha):
    rows = np.diag([1.0, 3.0, 0.2])
    rates = rows @ direction(samo_jax.fairgrad(alpha, preference=PREFERENCE), rows)
    wanted = (PREFERENCE / PREFERENCE.mean()) ** (1 / (1 + alpha))
    wanted *= np.diag(rows) ** (2 / (1 + alpha))
    np.testing.assert_allclose(rates, wanted, rtol=1e-12)


@pytest.mark.parametrize("name", mostly_slow(FACTORIES, but=QUICK))
def test_a_uniform_preference_is_none(name):
    make, rows = FACTORIES[name], gradients(0)
    wanted = weights_of(make(), rows)
    for number in (1.0, 0.1, 1 / 3):
        found = weights_of(make(preference=[number] * 3), rows)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTORIES)
def test_the_scale_of_a_preference_does_not_matter(name):
    make, rows = FACTORIES[name], gradients(1)
    wanted = weights_of(make(preference=PREFERENCE), rows)
    found = weights_of(make(preference=1e-3 * PREFERENCE), rows)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    assert np.abs(wanted - weights_of(make(), rows)).max() > 1e-2


@pytest.mark.parametrize("name", mostly_slow(FACTORIES, but=QUICK))
def test_absent_tasks_have_no_preference(name):
    make, rows = FACTORIES[name], gradients(2)
    present = np.array([True, False, True])
    rows[1] = 0
    found = weights_of(make(preference=PREFERENCE), rows, jnp.array(present))
    combiner = make(preference=PREFERENCE[present])
    gramian = samo_jax.gramian(jnp.asarray(rows[present]))
    losses = jnp.linspace(0.5, 2, 3)[present]
    alone, _ = combiner.update(gramian, combiner.init(2), losses=losses)
    np.testing.assert_allclose(found[present], alone, rtol=1e-9)
    assert found[1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTORIES)
def test_preferences_under_vmap(name):
    make, rows = FACTORIES[name], gradients(3)
    preferences = np.array([[1.0, 1, 1], [1, 2, 3], [0.1, 1, 10]])
    gramian, losses = samo_jax.gramian(jnp.asarray(rows)), jnp.linspace(0.5, 2, 3)

    @jax.jit
    @jax.vmap
    def weights(preference):
        combiner = make(preference=preference)
        return combiner.update(gramian, combiner.init(3), losses=losses)[0]

    wanted = [weights_of(make(preference=each), rows) for each in preferences]
    np.testing.assert_allclose(weights(preferences), wanted, rtol=1e-9)


@pytest.mark.parametrize("name", ["fairgrad-2", "nash_mtl"])
def test_who_must_be_preferred(name):
    with pytest.raises(ValueError, match="`preference` must be positive"):
        FACTORIES[name](preference=[1, 0, 1])
