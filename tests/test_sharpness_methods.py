"""Every sharpness method against its published equation, by hand in float64."""

import functools

import chex
import jax
import numpy as np
import pytest

import samo_jax

from sharpness import (
    LABELS,
    SHARED,
    TASKS,
    add,
    descend,
    descend_by_hand,
    descend_on_total,
    gradients,
    initial_params,
    inner_product,
    keep,
    multitask,
    norm,
    norm_groups,
    perturb,
    scale,
    single_task,
    total_gradient,
)
from tiers import mostly_slow

pytestmark = pytest.mark.usefixtures("x64")

assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-9, atol=1e-11)
NAMES = tuple(LABELS)
MASK = {"kernel": True, "bias": False, "left": True, "right": False, "up": True}
MASKED = tuple(name for name in NAMES if MASK[name])


# The rules: eps on one norm group, from its parameters and its direction


def sam(rho):
    def rule(w, p):
        del w
        return scale(p, rho / norm(p))

    return rule


def adaptive_sam(rho, eta, adapted=NAMES):
    def rule(w, p):
        t = {n: abs(x) + eta if n in adapted else np.ones(()) for n, x in w.items()}
        length = norm({n: t[n] * p[n] for n in p})
        return {n: rho * t[n] ** 2 * p[n] / length for n in p}

    return rule


def monge_sam(rho, alpha):
    def rule(w, p):
        del w
        return scale(p, rho / (norm(p) * np.sqrt(1 + alpha**2 * norm(p) ** 2)))

    return rule


def fisher_sam(rho, eta):
    def rule(w, p):
        del w
        natural = {n: x / (1 + eta * x**2) for n, x in p.items()}
        return scale(natural, rho / np.sqrt(inner_product(p, natural)))

    return rule


SINGLE = {
    "sam": (samo_jax.sam(0.3), sam(0.3), [NAMES]),
    "sam-masked": (samo_jax.sam(0.3, mask=MASK), sam(0.3), [MASKED]),
    "sam-mask-function": (
        samo_jax.sam(0.3, mask=lambda params: {n: MASK[n] for n in params}),
        sam(0.3),
        [MASKED],
    ),
    "sam-layerwise": (
        samo_jax.sam(0.3, norm="layerwise"),
        sam(0.3),
        [(name,) for name in NAMES],
    ),
    "layerwise-masked": (
        samo_jax.layerwise_sam(0.3, mask=MASK),
        sam(0.3),
        [(name,) for name in MASKED],
    ),
    "adaptive": (samo_jax.adaptive_sam(0.5, 0.1), adaptive_sam(0.5, 0.1), [NAMES]),
    "adaptive-eta-0": (samo_jax.adaptive_sam(0.5, 0), adaptive_sam(0.5, 0), [NAMES]),
    "adaptive-adapt-mask": (
        samo_jax.adaptive_sam(0.5, 0.1, adapt=MASK, mask=MASK | {"bias": True}),
        adaptive_sam(0.5, 0.1, MASKED),
        [(*MASKED, "bias")],
    ),
    "monge": (samo_jax.monge_sam(0.3, 0.7), monge_sam(0.3, 0.7), [NAMES]),
    "monge-masked": (
        samo_jax.monge_sam(0.3, mask=MASK),
        monge_sam(0.3, 1.0),
        [MASKED],
    ),
    "fisher": (samo_jax.fisher_sam(0.3, 2.0), fisher_sam(0.3, 2.0), [NAMES]),
}


@pytest.mark.parametrize("name", mostly_slow(SINGLE, but=4))
def test_one_task(name):
    perturbation, rule, groups = SINGLE[name]

    def direction(w, data):
        eps = perturb(rule, w, total_gradient(w, data), groups)
        return total_gradient(add(w, eps), data)

    actual = descend_on_total(single_task(perturbation), "float64")
    assert_close(actual, descend_by_hand(direction))


# Several tasks with heads: whose gradient, which norm, which leaves

SEVERAL = {
    "global": (samo_jax.sam(0.3), sam(0.3), "global", "separate"),
    "local": (samo_jax.sam(0.3, direction="local"), sam(0.3), "local", "separate"),
    "global-joint": (
        samo_jax.sam(0.3, norm="together"),
        sam(0.3),
        "global",
        "together",
    ),
    "local-joint": (
        samo_jax.sam(0.3, direction="local", norm="together"),
        sam(0.3),
        "local",
        "together",
    ),
    "local-layerwise": (
        samo_jax.layerwise_sam(0.3, direction="local"),
        sam(0.3),
        "local",
        "layerwise",
    ),
    "adaptive": (
        samo_jax.adaptive_sam(0.5, 0.1, direction="local"),
        adaptive_sam(0.5, 0.1),
        "local",
        "separate",
    ),
    "monge": (
        samo_jax.monge_sam(0.3, 0.7, direction="local"),
        monge_sam(0.3, 0.7),
        "local",
        "separate",
    ),
    "fisher": (samo_jax.fisher_sam(0.3, 2), fisher_sam(0.3, 2), "global", "separate"),
}


def perturbed_rows(rule, direction, kind, w, data, masked=NAMES):
    """The K gradients, each at its own perturbed point."""
    clean = gradients(w, data)
    mean = scale(add(*clean), 1 / len(clean))
    rows = []
    for i, head in enumerate(TASKS):
        groups = [keep(LABELS, g) for g in norm_groups(kind, head)]
        groups = [keep(group, masked) for group in groups]
        p = mean if direction == "global" else clean[i]
        rows.append(gradients(add(w, perturb(rule, w, p, groups)), data)[i])
    return rows


def mean_of(rows):
    """Shared leaves the mean, heads their own."""
    shared = scale(keep(add(*rows), SHARED), 1 / len(rows))
    return shared | {head: row[head] for head, row in zip(TASKS, rows, strict=True)}


@pytest.mark.parametrize(
    ("name", "unroll"),
    [
        *mostly_slow([(name, True) for name in SEVERAL], but=4, several=True),
        pytest.param("global", False, marks=pytest.mark.slow),
        pytest.param("local-joint", 2, marks=pytest.mark.slow),
    ],
)
def test_several_tasks(name, unroll):
    perturbation, rule, direction, kind = SEVERAL[name]
    actual = descend(multitask(perturbation, unroll=unroll), "float64")
    expected = descend_by_hand(
        lambda w, data: mean_of(perturbed_rows(rule, direction, kind, w, data))
    )
    assert_close(actual, expected)


@pytest.mark.parametrize("kind", ["separate", "together"])
def test_masked_heads_and_layers(kind):
    mask = {"kernel": True, "bias": False, "left": True, "right": True, "up": True}
    perturbation = samo_jax.sam(0.3, direction="local", norm=kind, mask=mask)
    masked = ("kernel", *TASKS)
    expected = descend_by_hand(
        lambda w, data: mean_of(
            perturbed_rows(sam(0.3), "local", kind, w, data, masked)
        )
    )
    assert_close(descend(multitask(perturbation), "float64"), expected)


@pytest.mark.parametrize("form", [samo_jax.Direction, samo_jax.Perturbation])
def test_a_direction_gets_its_length_and_a_perturbation_loses_its_own(form):
    rng = np.random.default_rng(1)
    towards = [
        {n: rng.normal(size=x.shape) for n, x in initial_params().items()}
        for _ in TASKS
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *towards)
    fixed = form(
        lambda _problem, _state: jax.tree.map(jax.numpy.asarray, stacked),
        lambda context, i: jax.tree.map(lambda leaf: leaf[i], context),
    )

    def direction(w, data):
        rows = []
        for i, (p, head) in enumerate(zip(towards, TASKS, strict=True)):
            eps = perturb(adaptive_sam(0.5, 0.1), w, p, norm_groups("separate", head))
            rows.append(gradients(add(w, eps), data)[i])
        return mean_of(rows)

    perturbation = samo_jax.adaptive_sam(0.5, 0.1, direction=fixed)
    actual = descend(multitask(perturbation), "float64")
    assert_close(actual, descend_by_hand(direction))


# GSAM: the two official forms


def narrow_as_in_pytorch(p, q, alpha):
    cosine = inner_product(p, q) / (norm(p) * norm(q))
    vertical = add(p, scale(q, -cosine * norm(p) / norm(q)))
    return add(q, scale(vertical, -alpha))


def narrow_as_in_jax(p, q, alpha):
    unit = scale(q, 1 / norm(q))
    residual = add(p, scale(unit, -inner_product(unit, p)))
    return add(q, scale(residual, -alpha))


@pytest.mark.parametrize("narrow", [narrow_as_in_pytorch, narrow_as_in_jax])
def test_surrogate_gap_sam(narrow):
    def direction(w, data):
        p = total_gradient(w, data)
        q = total_gradient(add(w, sam(0.3)(w, p)), data)
        return narrow(p, q, 0.4)

    actual = descend_on_total(
        single_task(samo_jax.surrogate_gap_sam(0.3, 0.4)), "float64"
    )
    assert_close(actual, descend_by_hand(direction))


def test_surrogate_gap_sam_of_several_tasks():
    """Each task's gradients are decomposed on the shared leaves and on its head."""

    def direction(w, data):
        clean = gradients(w, data)
        rows = perturbed_rows(sam(0.3), "local", "separate", w, data)
        narrowed = []
        for p, q, head in zip(clean, rows, TASKS, strict=True):
            parts = {}
            for group in norm_groups("separate", head):
                parts |= narrow_as_in_jax(keep(p, group), keep(q, group), 0.4)
            narrowed.append(scale(w, 0.0) | parts)
        return mean_of(narrowed)

    perturbation = samo_jax.surrogate_gap_sam(0.3, 0.4, direction="local")
    actual = descend(multitask(perturbation), "float64")
    assert_close(actual, descend_by_hand(direction))
