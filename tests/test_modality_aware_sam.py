"""Modality-Aware SAM against its three-gradient algorithm in float64 NumPy."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samo_jax

from three_heads import assert_close, assert_finite, types
from tiers import mostly_slow

M = 2
RHO = 0.3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, M, 3))  # example, modality, feature
Y = RNG.normal(size=6)
W = RNG.normal(size=(M, 3))
ALL = (True,) * M


def example_losses(w, present=ALL):
    """Late fusion, of one linear encoder a modality. Gradients by hand below."""
    parts = jnp.einsum("bmf,mf->bm", jnp.asarray(X, w.dtype), w)
    parts = jnp.where(jnp.asarray(present)[None], parts, 0)
    return jnp.square(jnp.sum(parts, axis=1) - jnp.asarray(Y, w.dtype))


def loss_fn(w, present=ALL):
    return jnp.mean(example_losses(w, present))


def modality_losses(w):
    """The loss of each modality alone."""
    return jnp.stack([loss_fn(w, present) for present in np.eye(M, dtype=bool)])


PARTS = {"batch": None, "sample": example_losses, "modality": modality_losses}


def numpy_losses(w, present=ALL):
    return (np.sum(X * w * np.array(present)[:, None], axis=(1, 2)) - Y) ** 2


def numpy_gradient(w, weights, present=ALL):
    """Of `sum_b weights_b l_b(w)`."""
    x = X * np.array(present)[:, None]
    residuals = np.sum(x * w, axis=(1, 2)) - Y
    return np.einsum("b,bmf->mf", 2 * weights * residuals, x)


def numpy_contributions():
    """Of the examples, shape (M, 6), from minus the losses."""
    v = {p: -numpy_losses(W, p) for p in product((False, True), repeat=M)}
    full, none, a, b = (v[p] for p in (ALL, (False,) * 2, (True, False), (False, True)))
    return np.stack([(full - b + a - none) / 2, (full - a + b - none) / 2])


def normalized(phi):
    positive = np.maximum(phi, 0)
    total = positive.sum(axis=0)
    share = positive / np.where(total > 0, total, 1)
    return np.where(total > 0, share, 1 / len(phi))


def unit(gradient):
    return gradient / np.linalg.norm(gradient)


def numpy_update(decompose, rho=RHO, encoder=False):
    """`grad L_d(w + eps) + grad L_s(w)`."""
    uniform = np.full(6, 1 / 6)
    phi = numpy_contributions()
    v = normalized(phi.mean(axis=1))
    present = ALL
    if decompose == "sample":
        weights = normalized(phi).max(axis=0) / 6
    else:
        weights = v.max() * uniform
    if decompose == "modality":
        present = np.arange(M) == v.argmax()
    dominant = numpy_gradient(W, weights, present)
    rest = numpy_gradient(W, uniform) - dominant
    ascent = dominant.copy()
    if encoder:
        ascent[np.arange(M) != v.argmax()] = 0
    eps = rho * unit(ascent)
    return numpy_gradient(W + eps, weights, present) + rest


def update(perturbation, w=W, updates=None, state=None, **extra_args):
    tx = samo_jax.single_task(perturbation)
    w = jnp.asarray(w, float)
    state = tx.init(w) if state is None else state
    updates = jax.grad(loss_fn)(w) if updates is None else updates
    arguments = {"modality_fn": lambda w, present: -loss_fn(w, present)}
    return tx.update(updates, state, w, loss_fn=loss_fn, **{**arguments, **extra_args})


def minus_losses(w, present):
    return -example_losses(w, present)


def sam(**kwargs):
    return samo_jax.modality_aware_sam(**{"rho": RHO, "num_modalities": M, **kwargs})


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("encoders", mostly_slow([None, {"a": 0, "b": 1}], but=1))
@pytest.mark.parametrize("decompose", mostly_slow(PARTS, but=1))
def test_three_gradient_algorithm(decompose, encoders):
    def joined(function):
        return lambda w, *args: function(jnp.stack([w["a"], w["b"]]), *args)

    w = {"a": jnp.asarray(W[0]), "b": jnp.asarray(W[1])}
    tx = samo_jax.single_task(sam(decompose=decompose, encoders=encoders))
    direction, state = tx.update(
        jax.grad(joined(loss_fn))(w),
        tx.init(w),
        w,
        loss_fn=joined(loss_fn),
        modality_fn=joined(minus_losses),
        loss_parts_fn=joined(PARTS[decompose]),
    )
    expected = numpy_update(decompose, encoder=encoders is not None)
    np.testing.assert_allclose(direction["a"], expected[0], rtol=1e-9)
    np.testing.assert_allclose(direction["b"], expected[1], rtol=1e-9)
    phi = numpy_contributions().mean(axis=1)
    state = state.perturbation_state
    np.testing.assert_allclose(state.shapley, phi[None], rtol=1e-9)
    np.testing.assert_allclose(state.contributions, normalized(phi)[None], rtol=1e-9)


def test_the_forms_differ_and_the_examples_disagree():
    dominant = normalized(numpy_contributions()).argmax(axis=0)
    assert set(dominant) == {0, 1}
    updates = [numpy_update(decompose) for decompose in PARTS]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(updates[i] - updates[j]) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("decompose", mostly_slow(["sample", "modality"], but=1))
def test_equal_parts_are_the_batch_form(decompose):
    """Losses or contributions that do not tell the parts apart."""

    def modality_fn(_, present):
        value = jnp.where(present[0], 3.0, 0) + jnp.where(present[1], 1.0, 0)
        return value if decompose == "modality" else jnp.full(6, value)

    parts = (
        example_losses
        if decompose == "sample"
        else lambda w: jnp.stack([loss_fn(w), loss_fn(w)])
    )
    batch, _ = update(sam(), modality_fn=modality_fn)
    direction, _ = update(
        sam(decompose=decompose), modality_fn=modality_fn, loss_parts_fn=parts
    )
    assert_close(direction, batch)


def shares(*values):
    """A value to which each modality adds a fixed amount."""

    def modality_fn(w, present):
        return jnp.sum(jnp.where(present, jnp.asarray(values, w.dtype), 0))

    return modality_fn


def mixed(share):
    """SAM's gradient and the plain one."""
    uniform = np.full(6, 1 / 6)
    plain = numpy_gradient(W, uniform)
    return share * numpy_gradient(W + RHO * unit(plain), uniform) + (1 - share) * plain


@pytest.mark.parametrize(
    ("values", "contributions"),
    [
        ((0.5, 0.0), (1, 0)),
        ((-0.2, 0.6), (0, 1)),
        ((0.6, 0.2), (0.75, 0.25)),
        ((0.4, 0.4), (0.5, 0.5)),
        ((-0.4, -0.1), (0.5, 0.5)),
        ((0.0, 0.0), (0.5, 0.5)),
        ((np.nan, 0.3), (0.5, 0.5)),
    ],
)
def test_contributions_mix_sam_and_plain(values, contributions):
    """Alone it is SAM; negative ones count as none; without any it is uniform."""
    direction, state = update(sam(), modality_fn=shares(*values))
    np.testing.assert_allclose(
        state.perturbation_state.contributions, [contributions], atol=1e-6
    )
    np.testing.assert_allclose(direction, mixed(max(contributions)), rtol=1e-4)


def test_full_contribution_is_sam():
    direction, _ = update(sam(), modality_fn=shares(1.0, 0.0))
    assert_close(direction, update(samo_jax.sam(RHO))[0])
    direction, _ = update(sam(num_modalities=1), modality_fn=shares(0.3))
    assert_close(direction, update(samo_jax.sam(RHO))[0])


@pytest.mark.parametrize("decompose", PARTS)
def test_zero_radius_is_plain(decompose):
    direction, _ = update(
        sam(rho=0.0, decompose=decompose),
        modality_fn=minus_losses,
        loss_parts_fn=PARTS[decompose],
    )
    assert_close(direction, jax.grad(loss_fn)(jnp.asarray(W, jnp.float32)))


@pytest.mark.parametrize(
    ("values", "perturbed"),
    mostly_slow([((0.3, 0.3), 0), ((0.3, 0.4), 1)], but=1, several=True),
)
def test_ties_go_to_the_first_modality(values, perturbed):
    def labels(_):
        return {"a": 0, "b": {"kernel": 1}, "fusion": -1}

    w = {"a": jnp.ones(2), "b": {"kernel": jnp.ones(2)}, "fusion": jnp.ones(2)}

    def cubes(w):
        return sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(w)) / 3

    tx = samo_jax.single_task(sam(encoders=labels))
    direction, _ = tx.update(
        jax.grad(cubes)(w),
        tx.init(w),
        w,
        loss_fn=cubes,
        modality_fn=lambda _, present: shares(*values)(w["a"], present),
    )
    moved = [bool(jnp.any(leaf > 1.01)) for leaf in jax.tree.leaves(direction)]
    assert moved == [perturbed == 0, perturbed == 1, False]


def test_average_over_steps():
    perturbation, state, average = sam(decay=0.9), None, np.zeros(2)
    for values in ((0.5, -0.1), (0.1, 0.3), (0.2, 0.4)):
        direction, state = update(
            perturbation, state=state, modality_fn=shares(*values)
        )
        average = 0.9 * average + 0.1 * np.array(values)
        seen = state.perturbation_state
        np.testing.assert_allclose(seen.shapley, [average], rtol=1e-4)
        np.testing.assert_allclose(seen.contributions, [normalized(average)], rtol=1e-4)
        np.testing.assert_allclose(
            direction, mixed(normalized(average).max()), rtol=1e-4
        )


def two_tasks(w, present=ALL):
    """The second task sees the second modality alone."""
    alone = [False, True]
    return {
        "both": example_losses(w["trunk"], present) * w["both"],
        "one": example_losses(w["trunk"], jnp.asarray(present) & jnp.asarray(alone)),
    }


def mean_losses(w):
    return jax.tree.map(jnp.mean, two_tasks(w))


@pytest.mark.parametrize("unroll", mostly_slow([True, False], but={False}))
@pytest.mark.parametrize("decompose", mostly_slow(["batch", "sample"], but={"sample"}))
def test_two_tasks(decompose, unroll):
    """Each task has its own contributions, clean gradient and perturbation."""
    w = {"trunk": jnp.asarray(W, jnp.float32), "both": jnp.array(0.7, jnp.float32)}
    tx = samo_jax.multitask(
        samo_jax.mgda(),
        sam(decompose=decompose),
        num_tasks=2,
        param_labels={"trunk": "shared", "both": "both"},
        unroll=unroll,
    )

    @jax.jit
    def step(w, state):
        grads = samo_jax.mean_value_and_grad(mean_losses)(w)[1]
        return tx.update(
            grads,
            state,
            w,
            loss_fn=mean_losses,
            modality_fn=lambda w, present: jax.tree.map(
                jnp.negative, two_tasks(w, present)
            ),
            loss_parts_fn=two_tasks,
        )

    state = tx.init(w)
    direction, state = step(w, state)
    assert types(direction) == types(w)

    def alone(name):
        """The same of one task; its trunk's and its head's norms are separate."""
        tx = samo_jax.multitask(
            samo_jax.mean(),
            sam(decompose=decompose),
            num_tasks=1,
            param_labels={"trunk": "shared", "both": name},
        )

        def loss_fn(w):
            return {name: mean_losses(w)[name]}

        return tx.update(
            jax.grad(lambda w: loss_fn(w)[name])(w),
            tx.init(w),
            w,
            loss_fn=loss_fn,
            modality_fn=lambda w, present: -two_tasks(w, present)[name],
            loss_parts_fn=lambda w: two_tasks(w)[name],
        )

    expected = [alone(name) for name in ("both", "one")]
    for i, (_, one) in enumerate(expected):
        assert_close(
            state.perturbation_state.contributions[i],
            one.perturbation_state.contributions[0],
        )
    assert abs(state.perturbation_state.shapley[1, 0]) < 1e-6  # does not see it
    mixed = sum(
        weight * one["trunk"]
        for weight, (one, _) in zip(state.weights, expected, strict=True)
    )
    assert_close(direction["trunk"], mixed, rtol=1e-4, atol=1e-5)
    assert_close(direction["both"], expected[0][0]["both"], rtol=1e-4)

    before = types(state)
    for _ in range(2):
        w = optax.apply_updates(w, optax.tree.scale(-0.01, direction))
        direction, state = step(w, state)
        assert types(state) == before
    assert step._cache_size() == 1
    assert_finite((direction, state))


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    "dtype", mostly_slow(["float32", "bfloat16"], but={"bfloat16"})
)
@pytest.mark.parametrize("decompose", mostly_slow(PARTS, but=1))
def test_strict_promotion_and_types(decompose, dtype):
    w = jnp.asarray(W, dtype)
    tx = optax.chain(
        samo_jax.single_task(sam(decompose=decompose, decay=0.5)), optax.sgd(0.1)
    )

    def step(_, carry):
        w, state = carry
        updates, state = tx.update(
            jax.grad(loss_fn)(w),
            state,
            w,
            loss_fn=loss_fn,
            modality_fn=minus_losses,
            loss_parts_fn=PARTS[decompose],
        )
        return optax.apply_updates(w, updates), state

    carry = (w, tx.init(w))
    after = jax.lax.fori_loop(0, 3, step, carry)
    assert types(after) == types(carry)
    assert_finite(after)


@pytest.mark.slow
def test_accuracy_of_many_modalities_is_sampled():
    """Beyond six, with a key, and with another draw at each step."""
    num_modalities = 8
    w = jnp.linspace(-1, 2, num_modalities)
    perturbation = samo_jax.modality_aware_sam(RHO, num_modalities=num_modalities)
    with pytest.raises(ValueError, match="`key` is required"):
        samo_jax.single_task(perturbation)
    tx = samo_jax.single_task(perturbation, key=0)

    def accuracy(w, present):
        return jnp.mean(jnp.where(present, w, 0) > 0) * jnp.any(present[-2:])

    def cubes(w):
        return jnp.sum(w**3)

    state, seen = tx.init(w), []
    for _ in range(2):
        _, state = tx.update(
            jax.grad(cubes)(w), state, w, loss_fn=cubes, modality_fn=accuracy
        )
        seen.append(state.perturbation_state.shapley)
        np.testing.assert_allclose(jnp.sum(seen[-1]), 5 / 8, rtol=1e-5)
    assert jnp.any(seen[0] != seen[1])


def test_missing_arguments():
    tx, w = samo_jax.single_task(sam()), jnp.asarray(W)
    with pytest.raises(ValueError, match="`modality_fn` is required by modality_aware"):
        tx.update(w, tx.init(w), w, loss_fn=loss_fn)
    for decompose in ("sample", "modality"):
        with pytest.raises(ValueError, match="`loss_parts_fn` is required by modality"):
            update(sam(decompose=decompose), modality_fn=minus_losses)


@pytest.mark.parametrize(
    ("settings", "extra_args", "message"),
    [
        ({"rho": -1}, {}, "`rho` must be non-negative"),
        ({"decay": 1.5}, {}, r"`decay` must be in \[0, 1\]"),
        ({"num_modalities": 0}, {}, "`num_modalities` must be a positive int, got 0"),
        ({"decompose": "token"}, {}, "`decompose` must be one of .*, got 'token'"),
        ({"encoders": 2}, {}, "`encoders` must label every leaf .* 0 to 1, or -1"),
        ({"encoders": "image"}, {}, "`encoders` must label .*; got 'image'"),
        (
            {},
            {"modality_fn": lambda w, _: [jnp.sum(w)] * 2},
            "`modality_fn` must return 1 arrays, .*; got 2",
        ),
        (
            {"decompose": "sample"},
            {"loss_parts_fn": example_losses},
            r"`loss_parts_fn` must return losses of shape \(1,\) for each task",
        ),
        (
            {"decompose": "modality"},
            {"loss_parts_fn": example_losses},
            r"must return losses of shape \(2,\) for each task, got \(6,\)",
        ),
        ({}, {"sample_loss_fns": [loss_fn]}, "`sample_loss_fns` must be empty"),
    ],
)
def test_wrong_arguments(settings, extra_args, message):
    with pytest.raises(ValueError, match=message):
        update(sam(**settings), **extra_args)
