"""`masked_mean`: examples without a label, and tasks without any in the batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samo_jax

from tiers import mostly_slow

TASKS = ("a", "b", "c")
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
LABELS = jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)
PARAMS = {
    "body": jnp.asarray(RNG.normal(size=(4, 5)), jnp.float32),
    **{task: jnp.asarray(RNG.normal(size=5), jnp.float32) for task in TASKS},
}


def losses_of(mask, labels, params, *, means=samo_jax.masked_mean):
    hidden = jnp.tanh(X @ params["body"])
    return {
        task: means((hidden @ params[task] - labels[:, i]) ** 2, mask[:, i])
        for i, task in enumerate(TASKS)
    }


# The last task has no labels, the first has some, the second has all.
MASK = jnp.ones((6, 3), bool).at[:3, 0].set(False).at[:, 2].set(False)
loss_fn = partial(losses_of, MASK, jnp.where(MASK, LABELS, 0))


def test_equals_the_mean_of_the_labelled():
    values, mask = RNG.normal(size=(5, 3)).astype(np.float32), RNG.random((5, 3)) < 0.5
    found = samo_jax.masked_mean(values, mask)
    np.testing.assert_allclose(found, values[mask].mean(), rtol=1e-6)
    by_row = samo_jax.masked_mean(values, mask, axis=-1)
    wanted = [
        v[m].mean() if m.any() else np.nan for v, m in zip(values, mask, strict=True)
    ]
    np.testing.assert_allclose(by_row, wanted, rtol=1e-6)
    examples = np.array([True, False, True, False, True])
    by_example = samo_jax.masked_mean(values, examples, axis=(0,))
    np.testing.assert_allclose(by_example, values[examples].mean(0), rtol=1e-6)


def test_sums_are_in_float32():
    values = jnp.ones(4096, jnp.bfloat16)
    mean = samo_jax.masked_mean(values, jnp.arange(4096) < 3000)
    assert mean.dtype == jnp.float32
    assert mean == 1


@pytest.mark.usefixtures("strict")
def test_without_labels_the_gradient_is_zero():
    mean = partial(samo_jax.masked_mean, mask=jnp.zeros(3, bool))
    loss, gradient = jax.value_and_grad(lambda v: 2 * jnp.log(mean(v)))(jnp.ones(3))
    assert jnp.isnan(loss)
    np.testing.assert_array_equal(gradient, jnp.zeros(3))


def test_the_gradient_of_the_mean_loss_is_that_of_the_others():
    _, grads = samo_jax.mean_value_and_grad(loss_fn)(PARAMS)

    def others(params):
        hidden = jnp.tanh(X @ params["body"])
        left = jnp.mean((hidden[3:] @ params["a"] - LABELS[3:, 0]) ** 2)
        right = jnp.mean((hidden @ params["b"] - LABELS[:, 1]) ** 2)
        return (left + right) / 3

    wanted = jax.grad(others)(PARAMS)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), grads, wanted)


WAYS = {
    "unrolled": {"unroll": True},
    "looped": {"unroll": False},
    "in chunks": {"unroll": 2},
    "in blocks": {"gramian_block": 1},
}
PERTURBATIONS = {
    "none": None,
    "global_sam": samo_jax.global_sam(0.1),
    "local_sam": samo_jax.local_sam(0.1),
    "joint_sam": samo_jax.joint_sam(0.1),
    "shared probe": samo_jax.joint_sam(0.1, local=samo_jax.probe(shared=True)),
}


@pytest.mark.parametrize("perturbation", mostly_slow(PERTURBATIONS, but={"joint_sam"}))
@pytest.mark.parametrize("way", mostly_slow(WAYS, but={"looped"}))
@pytest.mark.parametrize(
    "combiner", mostly_slow(["mean", "mgda", "famo"], but={"mgda"})
)
def test_a_task_without_labels_is_absent(combiner, way, perturbation):
    """As with a `task_mask` and a loss of zero."""
    labels = {task: task for task in TASKS} | {"body": "shared"}
    tx = samo_jax.multitask(
        getattr(samo_jax, combiner)(),
        PERTURBATIONS[perturbation],
        num_tasks=3,
        key=0,
        param_labels=labels,
        **WAYS[way],
    )

    def mean_or_zero(values, mask):
        return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1)

    masked = partial(losses_of, MASK, LABELS, means=mean_or_zero)

    @partial(jax.jit, static_argnums=0)
    def step(loss_fn, task_mask):
        _, grads = samo_jax.mean_value_and_grad(loss_fn)(PARAMS)
        return tx.update(
            grads, tx.init(PARAMS), PARAMS, loss_fn=loss_fn, task_mask=task_mask
        )

    direction, state = step(loss_fn, None)
    wanted, _ = step(masked, jnp.array([True, True, False]))
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, direction, wanted)
    np.testing.assert_array_equal(state.skipped, [0, 0, 1])
    assert np.any(direction["body"])
    assert not np.any(direction["c"])
