"""Every sharpness method under jit and scan, in every dtype, and its errors."""

import chex
import jax
import jax.numpy as jnp
import pytest
from jax import lax

import samo_jax

from sharpness import (
    LABELS,
    PERTURBATIONS,
    batch,
    descend,
    example_losses,
    initial_params,
    multitask,
    single_task,
    total_examples,
    update,
)
from toy import DTYPES, types


def rising(step):
    return jnp.array([0.1, 0.2, 0.3])[step]


SCHEDULES = {
    "adaptive-schedules": (samo_jax.adaptive_sam, ("rho", "eta")),
    "monge-schedules": (samo_jax.monge_sam, ("rho", "alpha")),
    "fisher-schedules": (samo_jax.fisher_sam, ("rho", "eta")),
    "friendly-schedules": (samo_jax.friendly_sam, ("rho", "sigma")),
    "surrogate-gap-schedules": (samo_jax.surrogate_gap_sam, ("rho", "alpha")),
}
METHODS = {
    name: multitask(make(), unroll=False) for name, make in PERTURBATIONS.items()
}
METHODS |= {
    name: multitask(method(**dict.fromkeys(names, rising)), unroll=False)
    for name, (method, names) in SCHEDULES.items()
}
METHODS |= {
    "f_mtl": samo_jax.f_mtl(
        samo_jax.mgda(), 0.3, num_tasks=3, param_labels=LABELS, unroll=False
    ),
    "f_mtl-adaptive": samo_jax.f_mtl(
        samo_jax.mean(),
        adaptive=True,
        norm="together",
        num_tasks=3,
        param_labels=LABELS,
    ),
    "look_sam": samo_jax.look_sam(
        multitask(PERTURBATIONS["sam"](), unroll=False),
        *(2, rising),
        num_tasks=3,
        param_labels=LABELS,
    ),
}


@pytest.mark.parametrize(("x64", "dtype"), DTYPES)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.usefixtures("strict")
def test_types_are_a_fixed_point_under_strict_promotion(name, x64, dtype):
    with jax.enable_x64(x64):
        tx, params, data = METHODS[name], initial_params(dtype), batch(0, dtype)
        before = jax.eval_shape(lambda: (params, tx.init(params)))
        after = jax.eval_shape(
            lambda params, state: update(tx, params, state, data), *before
        )
        assert after == before


@pytest.mark.parametrize(("x64", "dtype"), DTYPES)
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_types_of_one_task(name, x64, dtype):
    with jax.enable_x64(x64):
        tx = single_task(PERTURBATIONS[name]())
        params, data = initial_params(dtype), batch(0, dtype)
        before = jax.eval_shape(lambda: (params, tx.init(params)))
        after = jax.eval_shape(
            lambda params, state: update(tx, params, state, data, total_examples),
            *before,
        )
        assert after == before


@pytest.mark.parametrize("name", METHODS)
def test_one_compilation_and_scan(name):
    """Three steps, one by one and in one loop, and the same."""
    tx, params = METHODS[name], initial_params()
    chunks = jax.tree.map(lambda *x: jnp.stack(x), *(batch(t) for t in range(3)))

    def step(carry, data):
        params, state = carry
        direction, state = update(tx, params, state, data)
        params = jax.tree.map(lambda w, d: w - 0.1 * d, params, direction)
        return (params, state), direction

    start = (params, tx.init(params))
    carry, directions = jax.jit(lambda carry: lax.scan(step, carry, chunks))(start)
    assert types(carry) == types(start)
    compiled = descend(tx, compiled=True)
    scanned = [jax.tree.map(lambda x, t=t: x[t], directions) for t in range(3)]
    chex.assert_trees_all_close(scanned, compiled, rtol=1e-4, atol=1e-5)
    assert carry[1].step == 3


@pytest.mark.parametrize("name", ["sam", "momentum", "efficient"])
def test_one_compiled_function_serves_every_step(name):
    tx, params = METHODS[name], initial_params()
    step = jax.jit(lambda params, state, data: update(tx, params, state, data))
    state = tx.init(params)
    for t in range(3):
        _, state = step(params, state, batch(t))
    assert step._cache_size() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *(
            pytest.param(
                lambda make=make: make(-0.1),
                "`rho` must be non-negative and finite, got -0.1. 0 switches",
                id=f"rho-{name}",
            )
            for name, make in PERTURBATIONS.items()
        ),
        (lambda: samo_jax.sam(float("nan")), "`rho` must be non-negative"),
        (lambda: samo_jax.adaptive_sam(eta=-1), "`eta` must be .* got -1. 0 is T"),
        (lambda: samo_jax.monge_sam(alpha=-1), "`alpha` must be .* got -1. 0 is SAM"),
        (lambda: samo_jax.fisher_sam(eta=-1), "`eta` must be .* got -1. 0 is SAM"),
        (lambda: samo_jax.friendly_sam(sigma=-1), "`sigma` must be .* 0 is SAM"),
        (lambda: samo_jax.friendly_sam(decay=1.5), r"`decay` must be in \[0, 1\]"),
        (lambda: samo_jax.momentum_sam(decay=-0.5), r"`decay` must be in \[0, 1\]"),
        (lambda: samo_jax.surrogate_gap_sam(alpha=-1), "`alpha` must be .* 0 is SAM"),
        (lambda: samo_jax.efficient_sam(beta=0), r"`beta` must be in \(0, 1\], got 0"),
        (lambda: samo_jax.efficient_sam(gamma=1.5), r"`gamma` must be in \(0, 1\]"),
        (lambda: samo_jax.sam(norm="both"), "`norm` must be one of .*got 'both'"),
        (lambda: samo_jax.sam(direction="own"), "`direction` must be .*got 'own'"),
        (
            lambda: samo_jax.surrogate_gap_sam(direction=samo_jax.joint_sam()),
            '`direction` must be "global" or "local"',
        ),
        (
            lambda: samo_jax.single_task(samo_jax.sam),
            "`perturbation` must be a samo_jax.Perturbation.*Call the factory",
        ),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("argument", ["mask", "adapt"])
def test_wrong_trees(argument):
    params, data = initial_params(), batch(0)
    tx = single_task(samo_jax.adaptive_sam(**{argument: {"kernel": True}}))
    with pytest.raises(ValueError, match=f"`{argument}` must be a pytree prefix"):
        update(tx, params, tx.init(params), data, total_examples)


def test_hyperparameters_may_be_traced():
    """Nothing is checked then, and nothing is compiled again."""
    params, data = initial_params(), batch(0)

    @jax.jit
    def direction(rho):
        tx = multitask(samo_jax.monge_sam(rho, alpha=rho), unroll=False)
        return update(tx, params, tx.init(params), data, example_losses)[0]

    expected = descend(multitask(samo_jax.monge_sam(0.2, 0.2)), steps=1)[0]
    direction(0.1)
    chex.assert_trees_all_close(direction(0.2), expected, rtol=1e-4, atol=1e-6)
    assert direction._cache_size() == 1
