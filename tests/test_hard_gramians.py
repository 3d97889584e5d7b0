"""The Gramian methods where gradients cancel, depend on each other, or differ in size.

Gradients, and with them the Gramian, have the tested precision; what is checked is
computed in float64 or better. A conflict is a gradient's negative product with the
direction d, relative to its norm and to `sum_j |w_j| ||g_j||`, the length of d's terms:
below the rounding of these, the sign of a product means nothing.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samo_jax

import samplers
from tiers import mostly_slow

K, N = 8, 24
EPS = {name: float(np.finfo(name).eps) for name in ("float32", "float64")}
SEEDS = range(3)
KEY = jax.random.key(0)
LOSSES = np.linspace(0.5, 2, K)
ALPHAS = [0.1, 0.3, 0.5, 1.0, 2.0, 10.0, 30.0]
RADII = [0.0, 0.4, 1.0, 10.0]


def normal(rng, num_tasks=K, num_params=N):
    return rng.normal(size=(num_tasks, num_params))


def spread(rng, decades, *shape):
    jac = normal(rng, *shape)
    return jac * 10 ** rng.uniform(0, decades, size=(len(jac), 1))


def summing_to_zero(rng, level):
    """But for a relative error."""
    jac = normal(rng)
    return jac - jac.mean(axis=0) + level * normal(rng)


def opposite(rng, level):
    """Pairs of opposite gradients, but for a relative error."""
    half = normal(rng, K // 2)
    return np.concatenate([half, -half]) + level * normal(rng)


def duplicated(rng):
    jac = normal(rng)
    jac[::2] = jac[1]
    return jac


def with_zeros(rng):
    return normal(rng) * (np.arange(K) % 3 > 0)[:, None]


def sampled(kind, rank):
    return lambda rng: getattr(samplers, kind)(K, N, rank, rng)


def near(kind, rank, level):
    return lambda rng: sampled(kind, rank)(rng) + level * normal(rng)


# Every float32 Gramian below tells its gradients apart: their solution is defined.
CLEAR = {
    "normal": normal,
    "of norms from 1 to 1e4": lambda rng: spread(rng, 4),
    "tiny": lambda rng: 1e-15 * normal(rng),
    "huge": lambda rng: 1e15 * normal(rng),
    "not stationary": sampled("non_weak", 4),
}
UNCLEAR = {
    **{f"sum of {x:g}": lambda rng, x=x: summing_to_zero(rng, x) for x in (0, 1e-8)},
    **{f"sum of {x:g}": lambda rng, x=x: summing_to_zero(rng, x) for x in (1e-6, 1e-3)},
    **{f"opposite to {x:g}": lambda rng, x=x: opposite(rng, x) for x in (0, 1e-7)},
    **{f"opposite to {x:g}": lambda rng, x=x: opposite(rng, x) for x in (1e-4, 1e-2)},
    "duplicated": duplicated,
    "with zeros": with_zeros,
    "rank one": sampled("normal", 1),
    "rank three": sampled("normal", 3),
    "stationary": sampled("strong", 6),
    "stationary, rank three": sampled("strong", 3),
    "weakly stationary": sampled("strictly_weak", 6),
    "weakly stationary, rank three": sampled("strictly_weak", 3),
    "nearly stationary": near("strong", 6, 1e-6),
    "nearly weakly stationary": near("strictly_weak", 6, 1e-4),
    "one after all": lambda rng: normal(rng) * (np.arange(K) == 3)[:, None],
}
KINDS = CLEAR | UNCLEAR
JACOBIANS = np.stack(
    [draw(np.random.default_rng(seed)) for draw in KINDS.values() for seed in SEEDS]
)
LABELS = np.array([kind for kind in KINDS for _ in SEEDS])
IS_CLEAR = np.isin(LABELS, list(CLEAR))

# (G, parameter) to weights, or weights and info.
METHODS = {
    "mgda": lambda g, _: samo_jax.mgda_weights(g, return_info=True),
    "mgda-loss+": lambda g, _: samo_jax.mgda_weights(
        g, LOSSES, normalization="loss+", return_info=True
    ),
    "upgrad": lambda g, _: samo_jax.upgrad_weights(g, return_info=True),
    "dualproj": lambda g, _: samo_jax.dualproj_weights(g, return_info=True),
    "cagrad": lambda g, c: samo_jax.cagrad_weights(g, c, return_info=True),
    "fairgrad": lambda g, alpha: samo_jax.fairgrad_weights(g, alpha, return_info=True),
    "imtl_g": lambda g, _: samo_jax.imtl_g_weights(g),
    "aligned_mtl": lambda g, _: samo_jax.aligned_mtl_weights(g),
    "conflict_free_inverse": lambda g, _: samo_jax.conflict_free_inverse_weights(g),
    "pcgrad": lambda g, _: samo_jax.pcgrad_weights(g, KEY),
    "gradvac": lambda g, t: samo_jax.gradvac_weights(g, jnp.full((K, K), t), KEY)[0],
    "krum": lambda g, _: samo_jax.krum_weights(g, 1, 2),
    "db_mtl": lambda g, _: samo_jax.db_mtl_weights(g, LOSSES),
}
PARAMETERS = {"cagrad": RADII, "fairgrad": ALPHAS, "gradvac": [-0.5, 0.0, 0.999]}
CONFLICT_FREE = ["mgda", "mgda-loss+", "upgrad", "dualproj", "cagrad", "fairgrad"]


class Run(NamedTuple):
    """Gradients, shape (B, K, n), and what came of them, in float64."""

    jacs: np.ndarray
    parameters: np.ndarray
    weights: np.ndarray
    info: samo_jax.SolveInfo | None

    @property
    def norms(self):
        return np.linalg.norm(self.jacs, axis=2)

    @property
    def directions(self):
        return np.einsum("bk,bkn->bn", self.weights, self.jacs)

    @property
    def terms(self):
        return np.sum(np.abs(self.weights) * self.norms, axis=1)

    @property
    def rates(self):
        """Products of the directions with the gradients' own."""
        norms = np.where(self.norms, self.norms, 1)
        return np.einsum("bkn,bn->bk", self.jacs, self.directions) / norms

    @property
    def conflicts(self):
        return np.max(-self.rates, axis=1) / np.where(self.terms, self.terms, 1)

    @property
    def cosines(self):
        lengths = np.linalg.norm(self.directions, axis=1)
        return np.min(self.rates, axis=1) / np.where(lengths, lengths, 1)


def solve_all(solve, jacs, parameters, precision):
    """Every problem with every parameter, in one program."""
    jacs = np.asarray(jacs).astype(precision).astype(float)
    gramians = (jacs @ jacs.swapaxes(1, 2)).astype(precision)
    with jax.enable_x64(precision == "float64"):
        over_problems = jax.vmap(solve, (0, None))
        found = jax.jit(jax.vmap(over_problems, (None, 0)))(
            gramians, np.asarray(parameters, precision)
        )
        weights, info = found if isinstance(found, tuple) else (found, None)
    flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), info)
    return Run(
        np.tile(jacs, (len(parameters), 1, 1)),
        np.repeat(parameters, len(jacs)),
        np.asarray(weights, float).reshape(-1, jacs.shape[1]),
        flat,
    )


@cache
def run(name, precision):
    parameters = PARAMETERS.get(name, [0.0])
    return solve_all(METHODS[name], JACOBIANS, parameters, precision)


def labelled(found, mask):
    """Of the problems for which the mask holds: what to read when a test fails."""
    labels = np.tile(LABELS, len(found.weights) // len(LABELS))
    return list(zip(labels[mask], found.parameters[mask].tolist(), strict=True))


precisions = pytest.mark.parametrize("precision", mostly_slow(EPS, but={"float32"}))


@precisions
@pytest.mark.parametrize(
    "name", mostly_slow(METHODS, but={"mgda", "dualproj", "imtl_g", "gradvac"})
)
def test_weights_are_finite(name, precision):
    found = run(name, precision)
    assert not labelled(found, ~np.isfinite(found.weights).all(axis=1))
    if name not in {"imtl_g", "aligned_mtl", "conflict_free_inverse", "gradvac"}:
        assert not labelled(found, (found.weights < 0).any(axis=1))


@precisions
@pytest.mark.parametrize("name", mostly_slow(CONFLICT_FREE, but={"mgda", "dualproj"}))
def test_no_conflict_where_none_is_promised(name, precision):
    """Solved or not. Where the solution is defined, the very cosine is not negative."""
    found, eps = run(name, precision), EPS[precision]
    promised = (found.parameters >= 1) | (name != "cagrad")
    assert not labelled(found, promised & (found.conflicts > 64 * K * eps))
    clear = promised & np.tile(IS_CLEAR, len(found.weights) // len(IS_CLEAR))
    assert not labelled(found, clear & (found.cosines < -(eps**0.75)))
    assert not labelled(found, clear & ~found.info.converged)


@precisions
@pytest.mark.parametrize("name", mostly_slow(CONFLICT_FREE, but={"mgda", "dualproj"}))
def test_converged_means_it(name, precision):
    """A solution that counts as one has no conflict, unless d is zero for the Gramian.

    Which, in squares, knows lengths relative to those of the terms to half the digits.
    """
    found, half = run(name, precision), EPS[precision] ** 0.5
    promised = (found.parameters >= 1) | (name != "cagrad")
    lengths = np.linalg.norm(found.directions, axis=1)
    wrong = found.info.converged & promised & (found.cosines < -half)
    assert not labelled(found, wrong & (lengths > 8 * half * found.terms))


@pytest.mark.slow
def test_mean_gradient_of_a_ball_without_radius():
    """CAGrad with c = 0, whatever the Gramian."""
    for precision in EPS:
        found = run("cagrad", precision)
        active = found.norms > 0
        mean = active / np.sum(active, axis=1, keepdims=True)
        np.testing.assert_allclose(
            found.weights[found.parameters == 0],
            mean[found.parameters == 0],
            rtol=8 * EPS[precision],
        )


# Gradients of norms over four decades; enough of them for their sum to cancel much.
@precisions
@pytest.mark.parametrize("shape", mostly_slow([(64, 200), (8, 21)], but={(8, 21)}))
def test_fairgrad_is_exact(shape, precision):
    """Every equation holds to the rounding of its terms, and no task is hurt.

    Weights below the range of the precision are replaced by its least: there, the rate
    may be larger.
    """
    eps = EPS[precision]
    jacs = [spread(np.random.default_rng(seed), 4, *shape) for seed in range(6)]
    found = solve_all(METHODS["fairgrad"], jacs, ALPHAS, precision)
    assert found.info.converged.all()
    assert np.all(found.conflicts <= 8 * eps)
    jacs, weights = found.jacs.astype(np.longdouble), found.weights
    gramians = jacs @ jacs.swapaxes(1, 2)
    rates = np.einsum("bij,bj->bi", gramians, weights)
    terms = np.einsum("bij,bj->bi", np.abs(gramians), weights)
    used = weights > np.finfo(precision).tiny ** 0.5
    targets = np.where(used, weights, 1) ** (-1 / found.parameters[:, None])
    errors = np.where(used, np.abs(rates - targets), 0)
    assert np.all(errors <= 32 * eps * terms)


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["mgda", "upgrad", "dualproj", "conflict_free_inverse"],
        but={"mgda", "dualproj"},
    ),
)
def test_independent_of_the_order_of_the_tasks(name):
    """To the last bit, if no two gradients have the same norm."""
    rng = np.random.default_rng(0)
    orders = np.stack([rng.permutation(K) for _ in JACOBIANS])
    gramians = (JACOBIANS @ JACOBIANS.swapaxes(1, 2)).astype(np.float32)
    pairs = zip(gramians, orders, strict=True)
    reordered = np.stack([g[np.ix_(order, order)] for g, order in pairs])
    solve = jax.jit(jax.vmap(lambda g: METHODS[name](g, 0)))
    weights, others = (
        np.asarray(found[0] if isinstance(found, tuple) else found)
        for found in (solve(gramians), solve(reordered))
    )
    distinct = np.array([len(np.unique(np.diag(g))) == K for g in gramians])
    np.testing.assert_array_equal(
        np.take_along_axis(weights, orders, axis=1)[distinct], others[distinct]
    )


ABSENT = np.arange(K) % 3 == 1
# Options and, by name, one number per task.
OF_PRESENT = {
    "mgda": (samo_jax.mgda_weights, {}, {}),
    "mgda-loss+": (samo_jax.mgda_weights, {"normalization": "loss+"}, {"losses"}),
    "upgrad": (samo_jax.upgrad_weights, {}, {}),
    "upgrad-preference": (samo_jax.upgrad_weights, {}, {"preference"}),
    "dualproj": (samo_jax.dualproj_weights, {}, {}),
    "cagrad": (samo_jax.cagrad_weights, {}, {}),
    "fairgrad": (samo_jax.fairgrad_weights, {"alpha": 2.0}, {}),
    "nash_mtl": (samo_jax.nash_mtl_weights, {}, {}),
    "imtl_g": (samo_jax.imtl_g_weights, {}, {}),
    "aligned_mtl-min": (samo_jax.aligned_mtl_weights, {}, {}),
    "aligned_mtl-rmse": (
        samo_jax.aligned_mtl_weights,
        {"scale_mode": "rmse"},
        {"preference"},
    ),
    "conflict_free_inverse": (samo_jax.conflict_free_inverse_weights, {}, {}),
    "krum": (samo_jax.krum_weights, {"num_byzantine": 1, "num_selected": 2}, {}),
    "db_mtl": (samo_jax.db_mtl_weights, {}, {"losses"}),
}


@pytest.mark.parametrize("name", mostly_slow(OF_PRESENT, but={"krum"}))
def test_absent_tasks_do_not_exist(name, x64):  # noqa: ARG001
    """The weights of the present ones are those they have alone; the others' are zero.

    Whatever stands in the rows and losses of the absent, and with zero gradients.
    """
    method, options, names = OF_PRESENT[name]
    jac, present = normal(np.random.default_rng(1)), ~ABSENT
    for zeros in (0, 2, K):
        jac[:zeros] = 0
        gramian = jac @ jac.T
        alone = method(
            gramian[np.ix_(present, present)],
            **options,
            **{key: LOSSES[present] for key in names},
        )
        for fill in (0, np.nan):
            weights = method(
                np.where(np.outer(present, present), gramian, fill),
                **options,
                **{
                    key: np.where(present | (key != "losses"), LOSSES, np.nan)
                    for key in names
                },
                present=present,
            )
            np.testing.assert_array_equal(weights[ABSENT], 0)
            np.testing.assert_allclose(weights[present], alone, rtol=1e-9, atol=1e-12)


def test_krum_of_few_present_tasks():
    """It averages no more tasks than there are, and then all of them."""
    gramian = np.cov(normal(np.random.default_rng(4)))
    for count in (1, 2, 3):
        present = np.arange(K) >= K - count
        weights = samo_jax.krum_weights(gramian, 1, 4, present=present)
        np.testing.assert_allclose(weights, present / count, rtol=1e-6)


@pytest.mark.parametrize("name", mostly_slow(["pcgrad", "gradvac"], but=1))
def test_absent_tasks_are_met_by_no_surgery(name, x64):  # noqa: ARG001
    """Of two present tasks, whose order does not matter, each meets the other."""
    jac = normal(np.random.default_rng(2))
    present = np.isin(np.arange(K), [2, 5])
    gramian = jac @ jac.T
    pair = gramian[np.ix_(present, present)]
    targets = np.full((K, K), 0.3)
    if name == "pcgrad":
        alone = samo_jax.pcgrad_weights(pair, KEY)
        weights = samo_jax.pcgrad_weights(gramian, KEY, present=present)
    else:
        alone, _ = samo_jax.gradvac_weights(pair, targets[:2, :2], KEY)
        weights, met = samo_jax.gradvac_weights(gramian, targets, KEY, present=present)
        np.testing.assert_array_equal(met[~present], 0.3)
        np.testing.assert_array_equal(met[:, ~present], 0.3)
    np.testing.assert_array_equal(weights[~present], 0)
    np.testing.assert_allclose(weights[present], alone, rtol=1e-12)


COMBINERS = {
    "mgda": samo_jax.mgda(),
    "fairgrad": samo_jax.fairgrad(2.0),
    "krum": samo_jax.krum(0),
    "nash_mtl": samo_jax.nash_mtl(update_every=2),
    "mgda-loss": samo_jax.mgda("loss"),
    "db_mtl": samo_jax.db_mtl(),
}


@pytest.mark.parametrize("name", mostly_slow(COMBINERS, but={"mgda"}))
def test_last_weights_of_absent_tasks_wait(name):
    combiner, present = COMBINERS[name], ~ABSENT
    gramian = jnp.asarray(np.cov(normal(np.random.default_rng(3))))
    shown = jnp.where(np.outer(present, present), gramian, 0)
    losses = jnp.asarray(LOSSES)
    _, first = combiner.update(gramian, combiner.init(K), losses=losses)
    weights, second = combiner.update(
        shown, first, losses=jnp.where(present, losses, jnp.nan), present=present
    )
    first, second = (getattr(state, "solver_state", state) for state in (first, second))
    np.testing.assert_array_equal(weights[ABSENT], 0)
    np.testing.assert_array_equal(
        second.last_weights[ABSENT], first.last_weights[ABSENT]
    )
    assert second.info.finite


@pytest.mark.parametrize("name", mostly_slow(["db_mtl", "mgda-loss"], but=1))
def test_state_tells_of_losses_that_allow_no_weights(name):
    """Which tasks' losses, in how many updates: the weights stand still meanwhile."""
    combiner, gramian = COMBINERS[name], jnp.diag(jnp.arange(1.0, 4))
    state = combiner.init(3)
    for losses in ([1.0, -1.0, 1.0], [1.0, 0.0, np.inf], [1.0, 2.0, 4.0]):
        weights, state = combiner.update(gramian, state, losses=jnp.array(losses))
        stands = min(losses) <= 0
        np.testing.assert_equal(np.allclose(weights, 1 / 3), stands)
        assert state.info.finite != stands
    np.testing.assert_array_equal(state.unusable, [0, 2, 1])


def test_present_has_one_entry_per_task():
    with pytest.raises(ValueError, match=r"`present` must be one bool per task, shape"):
        samo_jax.mgda_weights(np.eye(3), present=np.ones(2, bool))
