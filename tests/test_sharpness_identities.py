"""What each sharpness method must equal: SAM, the plain gradient, one another."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import samo_jax

from sharpness import (
    LABELS,
    PERTURBATIONS,
    RADIUS,
    REPRESENTATIVES,
    descend,
    descend_on_total,
    multitask,
    single_task,
)
from tiers import mostly_slow

assert_close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-6)
NOWHERE = dict.fromkeys(LABELS, False)
MEAN, MGDA = samo_jax.mean(), samo_jax.mgda()


@functools.cache
def three_tasks(name):
    return descend(multitask(PERTURBATIONS[name]()))


@functools.cache
def one_task(name):
    return descend_on_total(single_task(PERTURBATIONS[name]()))


@functools.cache
def plain(num_tasks):
    if num_tasks == 3:
        return descend(multitask(None))
    return descend_on_total(samo_jax.multitask(MEAN, num_tasks=1))


@pytest.mark.parametrize("name", mostly_slow(PERTURBATIONS, but={"joint-shared"}))
def test_radius_zero_is_no_perturbation(name):
    perturbation = PERTURBATIONS[name](0.0)
    if name == "efficient":
        perturbation = samo_jax.efficient_sam(0.0, gamma=1.0)
    assert_close(descend_on_total(single_task(perturbation)), plain(1))
    if name != "surrogate-gap":  # of several tasks, its p is not the task's own
        assert_close(descend(multitask(perturbation)), plain(3))


SAM_IN_DISGUISE = {
    "surrogate-gap-alpha-0": samo_jax.surrogate_gap_sam(RADIUS, 0.0),
    "monge-alpha-0": samo_jax.monge_sam(RADIUS, 0.0),
    "fisher-eta-0": samo_jax.fisher_sam(RADIUS, 0.0),
    "adaptive-nowhere": samo_jax.adaptive_sam(RADIUS, adapt=NOWHERE),
    "friendly-sigma-0": samo_jax.friendly_sam(RADIUS, 0.0),
    "friendly-decay-1": samo_jax.friendly_sam(RADIUS, 1.0, decay=1.0),
    "efficient-beta-gamma-1": samo_jax.efficient_sam(RADIUS, 1.0, 1.0),
    "samo-alpha-1": samo_jax.joint_sam(RADIUS, 1.0),
    "samo-alpha-1-traced": samo_jax.joint_sam(RADIUS, lambda _step: jnp.ones(())),
    "global": samo_jax.global_sam(RADIUS),
    "mask-all": samo_jax.sam(RADIUS, mask=True),
}
SAM_OF_ONE_TASK = {
    "local": samo_jax.local_sam(RADIUS),
    "joint-norm": samo_jax.sam(RADIUS, norm="together"),
    "surrogate-gap-local-alpha-0": samo_jax.surrogate_gap_sam(
        RADIUS, 0.0, direction="local"
    ),
}


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        SAM_IN_DISGUISE,
        but={"global", "monge-alpha-0", "samo-alpha-1", "adaptive-nowhere"},
    ),
)
def test_is_global_sam(name):
    assert_close(descend(multitask(SAM_IN_DISGUISE[name])), three_tasks("sam"))


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        SAM_IN_DISGUISE | SAM_OF_ONE_TASK, but={"joint-norm", "local", "samo-alpha-1"}
    ),
)
def test_is_sam(name):
    perturbation = (SAM_IN_DISGUISE | SAM_OF_ONE_TASK)[name]
    assert_close(descend_on_total(single_task(perturbation)), one_task("sam"))


@pytest.mark.parametrize(
    ("perturbation", "name"),
    mostly_slow(
        [
            (samo_jax.local_sam(RADIUS), "sam-local"),
            (samo_jax.monge_sam(RADIUS, 0.0, direction="local"), "sam-local"),
            (samo_jax.fisher_sam(RADIUS, 0.0, direction="local"), "sam-local"),
            (samo_jax.surrogate_gap_sam(RADIUS, 0.0, direction="local"), "sam-local"),
            (samo_jax.sam(RADIUS, direction=samo_jax.joint_sam(0.7)), "joint"),
            (samo_jax.sam(RADIUS, direction=samo_jax.friendly_sam(0.7)), "friendly"),
            (samo_jax.sam(RADIUS, direction=samo_jax.momentum_sam(0.7)), "momentum"),
            (samo_jax.sam(RADIUS, norm="layerwise"), "layerwise"),
        ],
        but=1,
        several=True,
    ),
)
def test_is_another_spelling(perturbation, name):
    assert_close(descend(multitask(perturbation)), three_tasks(name))


@pytest.mark.slow
def test_methods_differ():
    names = [n for n in PERTURBATIONS if n not in ("global", "local")]
    last = [three_tasks(name)[-1]["kernel"] for name in names]
    for i, direction in enumerate(last):
        for other in last[:i]:
            assert jnp.linalg.norm(direction - other) > 1e-3


def test_layerwise_with_one_leaf_is_sam():
    params = jnp.array([1.0, -2.0, 0.5])

    def loss_fn(w):
        return jnp.sum(jnp.cos(w) + w**4)

    layerwise, sam = (
        samo_jax.single_task(method(0.3))
        for method in (samo_jax.layerwise_sam, samo_jax.sam)
    )
    grads = jax.grad(loss_fn)(params)
    chex.assert_trees_all_equal(
        *(
            tx.update(grads, tx.init(params), params, loss_fn=loss_fn)[0]
            for tx in (layerwise, sam)
        )
    )


COMBINERS = {"mgda": MGDA, "upgrad": samo_jax.upgrad(), "imtl_g": samo_jax.imtl_g()}


@pytest.mark.parametrize("combiner", mostly_slow(COMBINERS, but={"mgda"}))
@pytest.mark.parametrize("name", mostly_slow(PERTURBATIONS, but=REPRESENTATIVES))
def test_one_task_with_any_combiner_is_single_task(name, combiner):
    combiner = COMBINERS[combiner]
    tx = samo_jax.multitask(combiner, PERTURBATIONS[name](), num_tasks=1, key=0)
    assert_close(descend_on_total(tx), one_task(name))


@pytest.mark.parametrize(
    ("f_mtl", "name"),
    mostly_slow(
        [
            (samo_jax.f_mtl(COMBINERS["mgda"], RADIUS, num_tasks=1), "sam"),
            (samo_jax.f_mtl(MEAN, RADIUS, num_tasks=1, direction="global"), "sam"),
        ],
        but=1,
        several=True,
    ),
    ids=["local", "global"],
)
def test_f_mtl_of_one_task_is_sam(f_mtl, name):
    assert_close(descend_on_total(f_mtl), one_task(name))


# Schedules

RADII = (0.1, 0.5, 0.2)
HYPERPARAMETERS = [
    (samo_jax.sam, "rho"),
    (samo_jax.adaptive_sam, "rho"),
    (samo_jax.adaptive_sam, "eta"),
    (samo_jax.monge_sam, "alpha"),
    (samo_jax.fisher_sam, "eta"),
    (samo_jax.friendly_sam, "sigma"),
    (samo_jax.momentum_sam, "rho"),
    (samo_jax.surrogate_gap_sam, "alpha"),
    (samo_jax.efficient_sam, "rho"),
    (samo_jax.joint_sam, "mu"),
]


def with_value(method, name, value):
    return method(**{"rho": RADIUS} | {name: value})


def schedule(step):
    return jnp.asarray(RADII)[step]


@pytest.mark.parametrize(
    ("method", "name"), mostly_slow(HYPERPARAMETERS, but=5, several=True)
)
def test_a_schedule_is_its_value_at_each_step(method, name):
    scheduled = descend(multitask(with_value(method, name, schedule)))
    floats = [multitask(with_value(method, name, value)) for value in RADII]
    assert_close(scheduled, descend(lambda step: floats[step]))


@pytest.mark.parametrize(
    ("method", "name"), mostly_slow(HYPERPARAMETERS, but=1, several=True)
)
def test_a_float_is_a_constant_schedule(method, name):
    constant = multitask(with_value(method, name, optax.constant_schedule(0.2)))
    assert_close(descend(constant), descend(multitask(with_value(method, name, 0.2))))


@pytest.mark.parametrize(
    "injected",
    [schedule, pytest.param(RADIUS, marks=pytest.mark.slow)],
    ids=["schedule", "float"],
)
@pytest.mark.parametrize(
    ("method", "name"), mostly_slow(HYPERPARAMETERS, but=1, several=True)
)
def test_hyperparameters_can_be_injected(method, name, injected):
    @optax.inject_hyperparams
    def factory(value):
        return multitask(with_value(method, name, value))

    assert_close(
        descend(factory(injected)),
        descend(multitask(with_value(method, name, injected))),
    )
