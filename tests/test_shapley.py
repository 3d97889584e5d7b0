"""Shapley values against their definition by orders, in float64 NumPy."""

from itertools import combinations, permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samo_jax

from tiers import mostly_slow


def game(num_modalities, seed=0, shape=()):
    """A random value for every coalition, as a table and as a function of the mask."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(2**num_modalities, *shape))
    powers = 2 ** jnp.arange(num_modalities)

    def value_fn(present):
        return jnp.asarray(table)[jnp.sum(jnp.where(present, powers, 0))]

    return table, value_fn


def by_orders(table, num_modalities):
    """The average over all orders of what each modality adds."""
    phi = np.zeros((num_modalities, *table.shape[1:]))
    orders = list(permutations(range(num_modalities)))
    for order in orders:
        before = 0
        for m in order:
            phi[m] += table[before + 2**m] - table[before]
            before += 2**m
    return phi / len(orders)


@pytest.mark.parametrize("num_modalities", mostly_slow(range(1, 7), but={1, 3}))
def test_definition(num_modalities):
    table, value_fn = game(num_modalities, shape=(3, 2))
    phi = samo_jax.shapley_values(value_fn, num_modalities)
    np.testing.assert_allclose(phi, by_orders(table, num_modalities), atol=1e-6)


def test_closed_forms_with_the_empty_coalition_as_zero():
    """As AGM writes them for two and for three modalities."""
    v, value_fn = game(2)
    a, b, ab = v[1:]
    phi = samo_jax.shapley_values(value_fn, 2, subtract_empty=False)
    np.testing.assert_allclose(phi, [(ab - b + a) / 2, (ab - a + b) / 2], rtol=1e-5)

    v, value_fn = game(3)
    phi = samo_jax.shapley_values(value_fn, 3, subtract_empty=False)
    t, a, ta, b, tb, ab, tab = v[1:]
    first = (tab - ab + t) / 3 + (ta - a + tb - b) / 6
    np.testing.assert_allclose(phi[0], first, rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(phi), tab, rtol=1e-5)


@pytest.mark.parametrize("num_modalities", mostly_slow([3, 8], but=1))
def test_axioms(num_modalities):
    """Efficiency, additivity, and what dummies and twins get; sampled ones too."""
    key = jax.random.key(1)

    def shapley(value_fn):
        return samo_jax.shapley_values(value_fn, num_modalities, key=key)

    (table, f), (_, g) = (game(num_modalities, seed) for seed in (1, 2))
    phi = shapley(f)
    np.testing.assert_allclose(jnp.sum(phi), table[-1] - table[0], atol=1e-5)
    np.testing.assert_allclose(
        shapley(lambda present: 2 * f(present) - g(present)),
        2 * phi - shapley(g),
        atol=1e-5,
    )
    dummy = shapley(lambda present: f(present.at[1].set(False)) + 3.0 * present[1])
    np.testing.assert_allclose(dummy[1], 3, atol=1e-5)


def test_symmetry():
    value_fn = game(4)[1]

    def twins(present):
        """Modalities 0 and 2 may be swapped."""
        swapped = present[jnp.array([2, 1, 0, 3])]
        return value_fn(present) + value_fn(swapped)

    first, second, third, _ = samo_jax.shapley_values(twins, 4)
    np.testing.assert_allclose(first, third, atol=1e-6)
    assert abs(first - second) > 0.01


def pairs(present):
    """Each pair of modalities is worth something together, each one alone as well."""
    worth = jnp.arange(7.0)
    interaction = jnp.cos(worth[:, None] + worth)
    here = jnp.where(present, 1.0, 0.0)
    return worth @ here + here @ interaction @ here / 2


def test_sampled_values_converge():
    worth = np.arange(7.0)
    interaction = np.cos(worth[:, None] + worth)
    pairwise = (interaction.sum(axis=1) - np.diag(interaction)) / 2
    exact = worth + np.diag(interaction) / 2 + pairwise

    def error(num_permutations):
        @jax.jit
        @jax.vmap
        def estimate(key):
            return samo_jax.shapley_values(
                pairs, 7, key=key, num_permutations=num_permutations
            )

        estimates = estimate(jax.random.split(jax.random.key(0), 200))
        deviation = np.std(estimates, axis=0)
        bias = np.abs(np.mean(estimates, axis=0) - exact)
        np.testing.assert_array_less(bias, 5 * deviation / np.sqrt(200) + 1e-5)
        return float(deviation.mean())

    assert error(64) == pytest.approx(error(4) / 4, rel=0.2)


@pytest.mark.parametrize(
    ("num_modalities", "coalitions"),
    mostly_slow([(3, 8), (8, 16 * 7 + 2)], but=1, several=True),
)
def test_each_coalition_is_evaluated_once(num_modalities, coalitions):
    seen = []

    def value_fn(present):
        jax.debug.callback(lambda mask: seen.append(tuple(map(bool, mask))), present)
        return jnp.sum(jnp.where(present, 1.0, 0.0))

    phi = samo_jax.shapley_values(value_fn, num_modalities, key=jax.random.key(0))
    jax.effects_barrier()
    np.testing.assert_allclose(phi, 1, rtol=1e-5)
    assert len(seen) == coalitions
    assert seen.count((False,) * num_modalities) == 1
    assert seen.count((True,) * num_modalities) == 1
    if num_modalities == 3:
        subsets = [set(s) for r in range(4) for s in combinations(range(3), r)]
        assert {tuple(m in s for m in range(3)) for s in subsets} == set(seen)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("num_modalities", mostly_slow([2, 7], but={7}))
def test_pytrees_dtypes_and_jit(num_modalities):
    def value_fn(present):
        return {
            "correct": jnp.sum(present.astype(jnp.int32)),
            "logits": jnp.where(present[0], jnp.ones((2, 3), jnp.bfloat16), 0),
        }

    @jax.jit
    def shapley(key):
        return samo_jax.shapley_values(value_fn, num_modalities, key=key)

    phi = shapley(jax.random.key(0))
    assert phi["logits"].shape == (num_modalities, 2, 3)
    assert phi["logits"].dtype == phi["correct"].dtype == jnp.float32
    np.testing.assert_allclose(phi["correct"], 1, rtol=1e-5)
    np.testing.assert_allclose(phi["logits"][0], 1, rtol=1e-5)
    np.testing.assert_allclose(phi["logits"][1:], 0, atol=1e-6)


def test_gradient_of_shapley_logits():
    """What a loss on one modality's share of the logits needs."""
    x = jnp.array([2.0, 3.0])

    def share(w):
        return samo_jax.shapley_values(
            lambda present: jnp.where(present, x, 0) @ w + w[0] * w[1], 2
        )

    np.testing.assert_allclose(jax.jacobian(share)(jnp.ones(2)), jnp.diag(x), atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_float64():
    table, value_fn = game(3)
    phi = samo_jax.shapley_values(value_fn, 3)
    assert phi.dtype == jnp.float64
    np.testing.assert_allclose(phi, by_orders(table, 3), rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_modalities": 0}, "`num_modalities` must be a positive int, got 0"),
        ({"num_modalities": 2.5}, "`num_modalities` must be a positive int, got 2.5"),
        (
            {"num_modalities": 2, "num_permutations": 0},
            "`num_permutations` must be a positive int",
        ),
        ({"num_modalities": 7}, "`key` is required"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        samo_jax.shapley_values(jnp.sum, **arguments)
