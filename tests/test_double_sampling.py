"""MoDo and SDMGrad: NumPy recurrences on the gradients of independent batches."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy.optimize import minimize

import samo_jax

from three_heads import (
    HEADS,
    NUM_TASKS,
    PERTURBATIONS,
    batch,
    initial_params,
    jitted_update,
    losses_on,
    mean_grad,
    multitask,
    types,
)
from tiers import mostly_slow

COMBINERS = {"modo": samo_jax.modo(), "sdmgrad": samo_jax.sdmgrad()}
all_combiners = pytest.mark.parametrize("combiner", COMBINERS.values(), ids=COMBINERS)


def project(v):
    """The nearest point of the simplex, as a constrained least-squares problem."""
    result = minimize(
        lambda w: np.sum((w - v) ** 2),
        np.full(len(v), 1 / len(v)),
        jac=lambda w: 2 * (w - v),
        bounds=[(0, None)] * len(v),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        tol=1e-14,
    )
    return result.x


def samples(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, 7)) + 0.5


def products(first, second):
    norms = [np.linalg.norm(sample, axis=1) for sample in (first, second)]
    return first @ second.T / np.mean(np.sqrt(norms[0] * norms[1])) ** 2


def run(combiner, grads, state=None):
    first, *rest = (jnp.asarray(g, float) for g in grads)
    state = combiner.init(first[0], len(first)) if state is None else state
    return combiner.update(first, state, losses=jnp.ones(3), sample_grads=rest)


def picked(grads):
    """The gradients to combine, and the two samples of the Gramian."""
    if len(grads) == 2:
        return (grads[0] + grads[1]) / 2, *grads
    return grads


@pytest.mark.parametrize("count", mostly_slow([2, 3], but={3}))
def test_modo_recurrence(count, x64):  # noqa: ARG001
    combiner, weights, state = samo_jax.modo(0.3, 0.2), np.full(3, 1 / 3), None
    for seed in range(4):
        grads = samples(count, seed)
        jac, first, second = picked(grads)
        slope = (products(first, second) + 0.2 * np.eye(3)) @ weights
        weights = project(weights - 0.3 * slope)
        direction, got, state = run(combiner, grads, state)
        np.testing.assert_allclose(got, weights, atol=1e-7)
        np.testing.assert_allclose(direction, jac.T @ weights, atol=1e-6)


@pytest.mark.parametrize("count", mostly_slow([2, 3], but=1))
@pytest.mark.parametrize("preference", mostly_slow([None, [0.2, 0.5, 0.3]], but=1))
def test_sdmgrad_recurrence(count, preference, x64):  # noqa: ARG001
    combiner = samo_jax.sdmgrad(0.4, 0.3, 0.6, 5, preference=preference)
    u = np.full(3, 1 / 3) if preference is None else np.array(preference)
    weights, state = np.full(3, 1 / 3), None
    for seed in range(3):
        grads = samples(count, seed)
        jac, first, second = picked(grads)
        velocity = np.zeros(3)
        for _ in range(5):
            slope = products(first, second) @ (weights + 0.4 * u)
            velocity = 0.6 * velocity + slope
            weights = project(weights - 0.3 * velocity)
        direction, got, state = run(combiner, grads, state)
        np.testing.assert_allclose(state, weights, atol=1e-6)
        np.testing.assert_allclose(got, (weights + 0.4 * u) / 1.4, atol=1e-6)
        np.testing.assert_allclose(direction, jac.T @ np.asarray(got), atol=1e-6)


def test_equal_samples_lead_to_the_min_norm_point(x64):  # noqa: ARG001
    jac = samples(1)[0]
    exact = samo_jax.mgda_weights(jac @ jac.T)
    _, weights, _ = run(samo_jax.sdmgrad(0.0, 0.3, 0.0, 500), [jac, jac])
    np.testing.assert_allclose(weights, exact, atol=1e-6)
    combiner = samo_jax.modo(0.3, 0.0)
    weights = lax.fori_loop(
        *(0, 500, lambda _, state: run(combiner, [jac, jac], state)[2]),
        combiner.init(jac[0], 3),
    )
    np.testing.assert_allclose(weights, exact, atol=1e-6)


@all_combiners
@pytest.mark.parametrize("scale", mostly_slow([1e-10, 1e10], but={1e-10}))
def test_scale_of_the_gradients(combiner, scale):
    direction, _, _ = run(combiner, samples(2))
    scaled, _, _ = run(combiner, scale * samples(2))
    np.testing.assert_allclose(scaled / scale, direction, rtol=1e-4)


@all_combiners
@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_bad_gradients_keep_the_weights(combiner, bad):
    _, _, state = run(combiner, samples(2))
    _, weights, new = run(combiner, [samples(1)[0], np.full((3, 7), bad)], state)
    assert np.isfinite(weights).all()
    assert np.isfinite(new).all()
    if bad:
        np.testing.assert_array_equal(new, state)


@pytest.mark.parametrize(
    ("combiner", "name"),
    [
        *(pytest.param("modo", name, marks=pytest.mark.slow) for name in PERTURBATIONS),
        pytest.param("sdmgrad", "joint_sam", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("strict")
def test_inside_multitask(combiner, name):
    """All samples are seen at the same perturbed points."""
    combiner = COMBINERS[combiner]
    other = losses_on(batch(5))
    tx = multitask(combiner, PERTURBATIONS[name], param_labels=HEADS)
    update = jitted_update(tx, sample_loss_fns=[other])
    params, data = initial_params(), batch(0)
    grads = mean_grad(params, data)
    state = tx.init(params)
    direction, new = update(params, state, grads, data)
    chex.assert_trees_all_equal(types(new), types(state))
    _, new = update(params, new, grads, data)
    assert update._cache_size() == 1

    record = []
    recorder = samo_jax.Aggregator(
        lambda _params, _num_tasks: (),
        lambda task_grads, state, *, losses, sample_grads, **_: (
            jax.tree.map(lambda leaf: leaf[0], task_grads),
            losses,
            record.append((task_grads, sample_grads)) or state,
        ),
    )
    tx = multitask(recorder, PERTURBATIONS[name], param_labels=HEADS)
    loss_fn = losses_on(data)
    state = tx.init(params)
    for pair in ([loss_fn, loss_fn], [loss_fn, other]):
        tx.update(grads, state, params, loss_fn=pair[0], sample_loss_fns=pair[1:])
    (first, (same,)), (again, (different,)) = record
    chex.assert_trees_all_close(first, same)
    chex.assert_trees_all_close(first, again)
    expected, _, _ = combiner.update(
        first, combiner.init(params, 3), losses=jnp.ones(3), sample_grads=[different]
    )
    np.testing.assert_allclose(direction["trunk"], expected["trunk"], rtol=1e-4)


@all_combiners
def test_without_shared_leaves(combiner):
    state = combiner.init({"head": None}, 3)
    direction, weights, _ = combiner.update(
        {"head": None}, state, losses=jnp.ones(3), sample_grads=[{"head": None}]
    )
    assert direction == {"head": None}
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)


def test_a_sample_with_other_tasks_is_refused():
    tx = multitask(samo_jax.modo(), None)
    params = initial_params()
    loss_fn = losses_on(batch(0))
    with pytest.raises(ValueError, match=f"`num_tasks`={NUM_TASKS} losses; got 1"):
        tx.update(
            params,
            tx.init(params),
            params,
            loss_fn=loss_fn,
            sample_loss_fns=[lambda p: loss_fn(p)["left"]],
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: samo_jax.modo(-1), "`gamma` must be non-negative"),
        (lambda: samo_jax.modo(rho=-1), "`rho` must be non-negative"),
        (lambda: samo_jax.sdmgrad(-1), "`lam` must be non-negative"),
        (lambda: samo_jax.sdmgrad(momentum=2), r"`momentum` must be in \[0, 1\]"),
        (lambda: samo_jax.sdmgrad(steps=0), "`steps` must be a positive int, got 0"),
        (lambda: samo_jax.sdmgrad(preference=[-1, 2]), "`preference` must be finite"),
        (
            lambda: run(samo_jax.modo(), samples(1)),
            r"`sample_grads` is required by modo\(\), one or two .* got 0",
        ),
        (
            lambda: run(samo_jax.sdmgrad(), samples(4)),
            r"`sample_grads` is required by sdmgrad\(\), one or two .* got 3",
        ),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
