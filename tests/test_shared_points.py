"""Fewer perturbed points than tasks: the same result in fewer passes."""

import functools

import chex
import jax.numpy as jnp
import pytest

import samo_jax

from passes import NUM_TASKS, operations
from sharpness import PERTURBATIONS, REPRESENTATIVES, descend, multitask
from tiers import mostly_slow

SHARED = [
    name
    for name, make in PERTURBATIONS.items()
    if make().shared_perturbations is not None and make().loss is None
]
LINEAR = {
    "mean": samo_jax.mean(),
    "total": samo_jax.total(),
    "constant": samo_jax.constant([0.0, 1.0, 2.0]),
    "random": samo_jax.random_weights(0),
    "uncertainty": samo_jax.uncertainty(),
    "smoothed": samo_jax.smoothed(samo_jax.geometric_mean()),
    "log": samo_jax.log_losses(samo_jax.mean()),
}


def test_methods_along_one_direction_share_points():
    assert {"global", "sam", "monge", "momentum", "joint-shared"} <= set(SHARED)
    assert not {"local", "joint", "memory", "efficient", "sam-local"} & set(SHARED)


@functools.cache
def own_points(name):
    perturbation = PERTURBATIONS[name]()._replace(shared_perturbations=None)
    return descend(multitask(perturbation, samo_jax.fairgrad()), "float64", steps=2)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("unroll", mostly_slow([True, False, 2], but={False}))
@pytest.mark.parametrize("name", mostly_slow(SHARED, but=REPRESENTATIVES & set(SHARED)))
def test_shared_points_are_those_of_each_task(name, unroll):
    tx = multitask(PERTURBATIONS[name](), samo_jax.fairgrad(), unroll=unroll)
    chex.assert_trees_all_close(
        descend(tx, "float64", steps=2), own_points(name), rtol=1e-9
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "perturbation"),
    mostly_slow(
        [
            *((name, "joint-shared") for name in LINEAR),
            *(
                ("random", perturbation)
                for perturbation in (None, "global", "friendly")
            ),
        ],
        but=[("uncertainty", "joint-shared"), ("random", None)],
        several=True,
    ),
)
def test_linear_combiners_need_no_task_gradients(name, perturbation):
    combiner = LINEAR[name]
    assert not combiner.needs_gramian
    made = PERTURBATIONS[perturbation]() if perturbation else None
    run = functools.partial(descend, dtype="float64", steps=2)
    chex.assert_trees_all_close(
        run(multitask(made, combiner)),
        run(multitask(made, combiner._replace(needs_gramian=True))),
        rtol=1e-9,
        atol=1e-12,
    )


def test_combiners_of_the_gramian_are_not_linear():
    for make in (samo_jax.mgda, samo_jax.fairgrad, samo_jax.upgrad, samo_jax.gradnorm):
        assert make().needs_gramian
    assert samo_jax.smoothed(samo_jax.mgda()).needs_gramian
    assert samo_jax.log_losses(samo_jax.mgda()).needs_gramian


# Passes, counted in the compiled program

SHARED_PROBE = samo_jax.joint_sam(local=samo_jax.probe(shared=True))
FAIRGRAD, MEAN = samo_jax.fairgrad(), samo_jax.mean()
PASSES = {  # forward and backward, in a step with the clean pass or without
    "plain": (FAIRGRAD, None, False, 1, NUM_TASKS),
    "global": (FAIRGRAD, samo_jax.global_sam(), True, 2, NUM_TASKS + 1),
    "two points": (FAIRGRAD, SHARED_PROBE, True, 5, NUM_TASKS + 1),
    "shared probe": (
        FAIRGRAD,
        SHARED_PROBE._replace(shared_perturbations=None),
        True,
        NUM_TASKS + 3,
        NUM_TASKS + 1,
    ),
    "samo": (FAIRGRAD, samo_jax.joint_sam(), True, 3 * NUM_TASKS + 1, NUM_TASKS + 1),
    "memory": (FAIRGRAD, samo_jax.memory_sam(), True, NUM_TASKS + 1, NUM_TASKS + 1),
    "memory alone": (
        FAIRGRAD,
        samo_jax.memory_sam(clean_pass=False),
        False,
        NUM_TASKS,
        NUM_TASKS,
    ),
    "mean plain": (MEAN, None, False, 1, 1),
    "mean global": (MEAN, samo_jax.global_sam(), True, 2, 2),
    "mean two points": (MEAN, SHARED_PROBE, True, 5, 3),
}


def test_a_head_whose_gradient_is_not_finite_is_absent():
    """Also where the tasks have no gradients of their own."""
    params = {"w": jnp.ones(2), "a": jnp.zeros(()), "b": jnp.ones(())}

    def loss_fn(params):
        return {
            "a": jnp.sum(params["w"]) + jnp.sqrt(0 * params["a"]),
            "b": params["b"] * jnp.sum(params["w"] ** 2),
        }

    labels = {"w": "shared", "a": "a", "b": "b"}
    tx = samo_jax.multitask(samo_jax.total(), num_tasks=2, param_labels=labels)
    direction, state = tx.update(params, tx.init(params), params, loss_fn=loss_fn)
    expected = {"w": 2 * params["w"], "a": jnp.zeros(()), "b": jnp.array(2.0)}
    chex.assert_trees_all_close(direction, expected)
    assert state.skipped.tolist() == [1, 0]


@pytest.mark.parametrize(
    "name",
    mostly_slow(PASSES, but={"two points", "mean global"}),
)
def test_passes(name):
    combiner, perturbation, clean_pass, forward, backward = PASSES[name]
    tx = samo_jax.multitask(combiner, perturbation, num_tasks=NUM_TASKS, key=0)
    # Random numbers, norms and the Gramian are the rest.
    assert 1 <= operations(tx, clean_pass, forward, backward) < 1.14
