"""What every sharpness method of the registries has in common."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import pytest
from jax import lax

import samo_jax
from samo_jax import PERTURBATIONS, TRANSFORMATIONS

from sharpness import (
    LABELS,
    batch,
    descend,
    example_losses,
    initial_params,
    multitask,
    single_task,
    task_losses,
    total_examples,
    update,
)
from three_heads import types
from tiers import mostly_slow

RADIUS = 0.3
REQUIRED = {"modality_aware_sam": {"num_modalities": 3}}


def of_the_registry():
    """Every entry with a radius and its other defaults, and every variant."""
    names = vars(samo_jax) | {"rho": RADIUS}
    for name, entry in PERTURBATIONS.items():
        yield entry, entry.factory(RADIUS, **REQUIRED.get(name, {}))
        for variant in entry.variants:
            yield variant, eval(variant.call, names)


def rising(step):
    return jnp.array([0.1, 0.2, 0.3])[step]


ENTRIES = list(of_the_registry())
OF_THE_REGISTRY = {repr(perturbation): perturbation for _, perturbation in ENTRIES}
# Other code: norms, masks, probes, memories, and schedules of every hyperparameter.
METHODS = OF_THE_REGISTRY | {
    "together": samo_jax.sam(RADIUS, norm="together"),
    "masked": samo_jax.sam(RADIUS, mask=dict.fromkeys(LABELS, True) | {"bias": False}),
    "one-sided probes": samo_jax.joint_sam(
        RADIUS, "adaptive", local=samo_jax.probe(num_probes=2, antithetic=False)
    ),
    "short memory": samo_jax.memory_sam(
        RADIUS, "adaptive", decay=0.5, dtype="bfloat16", clean_pass=False
    ),
    "adaptive, scheduled": samo_jax.adaptive_sam(rising, rising),
    "Monge, scheduled": samo_jax.monge_sam(rising, rising),
    "Fisher, scheduled": samo_jax.fisher_sam(rising, rising),
    "friendly, scheduled": samo_jax.friendly_sam(rising, rising),
    "surrogate gap, scheduled": samo_jax.surrogate_gap_sam(rising, rising),
}
SCANNED = {
    repr(perturbation)
    for perturbation in (
        samo_jax.global_sam(RADIUS),
        samo_jax.local_sam(RADIUS),
        samo_jax.joint_sam(local=samo_jax.probe(shared=True)),
        samo_jax.memory_sam(RADIUS),
    )
}


def f_mtl(combiner, **arguments):
    return samo_jax.f_mtl(combiner, num_tasks=3, param_labels=LABELS, **arguments)


TRANSFORMED = {
    "f_mtl": f_mtl(samo_jax.mgda(), rho=RADIUS, unroll=False),
    "f_mtl, adaptive": f_mtl(samo_jax.mean(), adaptive=True, norm="together"),
    "look_sam": samo_jax.look_sam(
        multitask(samo_jax.sam(RADIUS), unroll=False),
        *(2, rising),
        num_tasks=3,
        param_labels=LABELS,
    ),
}


class Setting(NamedTuple):
    """How a step is taken: each value of each field, with others that fit."""

    x64: bool
    dtype: str
    combiner: samo_jax.Weighting
    unroll: bool | int


SETTINGS = [
    Setting(False, "float32", samo_jax.mean(), True),
    Setting(False, "bfloat16", samo_jax.mgda(), False),
    Setting(True, "float32", samo_jax.mean(), 2),
    Setting(True, "float64", samo_jax.fairgrad(), False),
]


def assert_types_are_a_fixed_point(tx, dtype, examples=example_losses):
    params, data = initial_params(dtype), batch(0, dtype)
    before = jax.eval_shape(lambda: (params, tx.init(params)))
    after = jax.eval_shape(
        lambda params, state: update(tx, params, state, data, examples), *before
    )
    assert after == before
    return after


def test_the_registries_are_the_public_names():
    assert PERTURBATIONS.keys() | TRANSFORMATIONS.keys() <= vars(samo_jax).keys()
    assert {name.partition(",")[0] for name in TRANSFORMED} == set(TRANSFORMATIONS)


@pytest.mark.parametrize(
    "name", mostly_slow(METHODS, but={*SCANNED, "one-sided probes", "masked"})
)
@pytest.mark.usefixtures("strict")
def test_types_are_a_fixed_point(name):
    """Also under strict promotion, in half precision, and in float64."""
    for x64, dtype, combiner, unroll in SETTINGS:
        with jax.enable_x64(x64):
            tx = multitask(METHODS[name], combiner, unroll=unroll)
            _, state = assert_types_are_a_fixed_point(tx, dtype)
            assert state.weights.dtype == jnp.result_type(float)


@pytest.mark.parametrize(
    "name", mostly_slow(TRANSFORMED, but={"f_mtl, adaptive", "look_sam"})
)
@pytest.mark.usefixtures("strict")
def test_types_of_transformations_are_a_fixed_point(name):
    for x64, dtype, _, _ in SETTINGS:
        with jax.enable_x64(x64):
            assert_types_are_a_fixed_point(TRANSFORMED[name], dtype)


@pytest.mark.parametrize("name", mostly_slow(METHODS, but=SCANNED))
def test_types_of_one_task_are_a_fixed_point(name):
    for x64, dtype, _, _ in SETTINGS[1::2]:
        with jax.enable_x64(x64):
            tx = single_task(METHODS[name])
            assert_types_are_a_fixed_point(tx, dtype, total_examples)


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        METHODS | TRANSFORMED, but={repr(samo_jax.local_sam(RADIUS)), "look_sam"}
    ),
)
def test_a_scan_equals_single_steps(name):
    """Also, one is a loop over the tasks under jit, the others are not."""
    looped = single = TRANSFORMED.get(name)
    if looped is None:
        looped = multitask(METHODS[name], unroll=False)
        single = multitask(METHODS[name], unroll=True)
    params = initial_params()
    chunks = jax.tree.map(lambda *x: jnp.stack(x), *(batch(t) for t in range(3)))

    def step(carry, data):
        params, state = carry
        direction, state = update(looped, params, state, data)
        params = jax.tree.map(lambda w, d: w - 0.1 * d, params, direction)
        return (params, state), direction

    start = (params, looped.init(params))
    carry, directions = jax.jit(lambda carry: lax.scan(step, carry, chunks))(start)
    assert types(carry) == types(start)
    scanned = [jax.tree.map(lambda x, t=t: x[t], directions) for t in range(3)]
    chex.assert_trees_all_close(scanned, descend(single), rtol=1e-4, atol=1e-5)
    assert carry[1].step == 3


@pytest.mark.parametrize("name", mostly_slow(["momentum_sam", "efficient_sam"], but=1))
def test_one_compiled_function_serves_every_step(name):
    tx, params = multitask(PERTURBATIONS[name].factory(RADIUS)), initial_params()
    step = jax.jit(lambda params, state, data: update(tx, params, state, data))
    state = tx.init(params)
    for t in range(3):
        _, state = step(params, state, batch(t))
    assert step._cache_size() == 1


def test_repr_is_the_call():
    for entry, perturbation in ENTRIES:
        name = entry.call.partition("(")[0]
        assert repr(perturbation).startswith(f"samo_jax.{name}(")


@pytest.mark.parametrize(
    ("entry", "perturbation"), ENTRIES, ids=[entry.call for entry, _ in ENTRIES]
)
def test_what_the_registry_says_is_remembered(entry, perturbation):
    state = multitask(perturbation).init(initial_params())
    held = jax.tree.leaves(state.perturbation_state)
    assert bool(held) == bool(entry.remembers.replace("key", ""))


@pytest.mark.parametrize("name", [n for n, e in PERTURBATIONS.items() if e.needs])
def test_what_the_registry_says_is_needed(name):
    entry, params, data = PERTURBATIONS[name], initial_params(), batch(0)
    tx = multitask(entry.factory(**REQUIRED.get(name, {})))
    with pytest.raises(ValueError, match=rf"^`({'|'.join(entry.needs)})` is required"):
        tx.update(
            params, tx.init(params), params, loss_fn=lambda p: task_losses(p, data)
        )


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
