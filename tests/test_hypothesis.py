"""Any model, losses, labels, dtype, combiner and perturbation: what holds for all."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import samo_jax
from samo_jax._labels import label_leaves
from samo_jax._tasks import loss_leaves

import combiners
import sharpness
from properties import solve
from property_table import METHODS
from three_heads import assert_finite

searching = partial(settings, deadline=None, derandomize=True, database=None)

# Pipelines

CASES = {str(case): case for case in combiners.CASES}
NUM_EXAMPLES = 4
FORMS = {
    "list": lambda losses: losses,
    "array": jnp.stack,
    "dict": lambda losses: {f"task{i}": loss for i, loss in enumerate(losses)},
    "nested": lambda losses: {"y": tuple(losses[1:]), "x": [losses[0]]},
}
NAMES = {
    "list": lambda num_tasks: [str(i) for i in range(num_tasks)],
    "array": lambda num_tasks: [str(i) for i in range(num_tasks)],
    "dict": lambda num_tasks: [f"task{i}" for i in range(num_tasks)],
    "nested": lambda num_tasks: ["x/0", *(f"y/{i}" for i in range(num_tasks - 1))],
}
PERTURBATIONS = sharpness.PERTURBATIONS | {
    "plain": lambda: None,
    "sam-masked": lambda: samo_jax.sam(
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim != 1, params)
    ),
}


class Model(NamedTuple):
    """Parameters, which of them are whose, and the form of the losses."""

    params: Any
    labels: Any
    num_tasks: int
    form: str

    @property
    def names(self):
        return NAMES[self.form](self.num_tasks)

    def example_losses(self, params, index=np.arange(NUM_EXAMPLES)):  # noqa: B008
        """Shape (B,) for each task, from its own leaves."""
        labels = jax.tree.leaves(label_leaves(params, self.labels))
        x = 1 + jnp.asarray(index, jnp.float32) / NUM_EXAMPLES

        def loss(i, name):
            total = jnp.zeros_like(x)
            for leaf, label in zip(jax.tree.leaves(params), labels, strict=True):
                if label in ("shared", name):
                    flat = jnp.ravel(leaf).astype(jnp.float32)
                    total += jnp.sin((i + 1) * x[:, None] * flat[None]).sum(1)
            return total**2 / 10 + 1

        return self.in_form([loss(i, name) for i, name in enumerate(self.names)])

    def in_form(self, losses):
        return FORMS["list" if self.form == "array" else self.form](losses)

    def losses(self, params):
        means = jax.tree.map(jnp.mean, self.example_losses(params))
        return jnp.stack(means) if self.form == "array" else means


def array(shape, dtype, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@st.composite
def models(draw, shapes=((), (1,), (3,), (2, 3), (0,), (2, 0))):
    dtypes = st.sampled_from(["float32", "bfloat16", "float16"])
    leaves = st.builds(array, st.sampled_from(shapes), dtypes, st.integers(0, 9))
    trees = st.recursive(
        leaves | st.none(),
        lambda children: (
            st.lists(children, max_size=3)
            | st.tuples(children, children)
            | st.dictionaries(st.sampled_from("abc"), children, max_size=3)
        ),
        max_leaves=5,
    )
    params = {"first": draw(leaves), "rest": draw(trees)}
    form, num_tasks = draw(st.sampled_from(list(FORMS))), draw(st.integers(1, 4))
    names = st.sampled_from(["shared", *NAMES[form](num_tasks)])
    labels = draw(st.none() | st.just("shared") | st.just(names))
    if labels is names:
        labels = jax.tree.map(lambda _: draw(names), params)
    return Model(params, labels, num_tasks, form)


def transformation(model, combiner, perturbation, unroll):
    # `lax.map` with a batch size fails on arrays of size 0.
    empty = any(leaf.size == 0 for leaf in jax.tree.leaves(model.params))
    assume(not (empty and type(unroll) is int))
    return samo_jax.multitask(
        CASES[combiner].make(model.num_tasks),
        PERTURBATIONS[perturbation](),
        num_tasks=model.num_tasks,
        key=0,
        param_labels=model.labels,
        unroll=unroll,
    )


def update(model, combiner, tx, params, state):
    """With every extra argument that some method wants."""
    extra = {}
    if CASES[combiner].needs_second_batch:
        extra["sample_loss_fns"] = [lambda p: jax.tree.map(jnp.exp, model.losses(p))]
    losses, grads = samo_jax.mean_value_and_grad(model.losses)(params)
    return tx.update(
        grads,
        state,
        params,
        loss_fn=model.losses,
        losses_after=jnp.stack(loss_leaves(losses)),
        example_losses=model.example_losses(params),
        example_loss_fn=model.example_losses,
        **extra,
    )


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


pipelines = (
    models(),
    st.sampled_from(list(CASES)),
    st.sampled_from(list(PERTURBATIONS)),
    st.sampled_from([None, True, False, 1, 2]),
)


@pytest.mark.slow
@searching(max_examples=30)
@given(*pipelines)
def test_shapes_and_types_are_kept(model, combiner, perturbation, unroll):
    """Of the parameters, and of the state; nothing is computed."""
    tx = transformation(model, combiner, perturbation, unroll)
    state = jax.eval_shape(tx.init, model.params)
    step = partial(update, model, combiner, tx)
    updates, new_state = jax.eval_shape(step, model.params, state)
    assert types(updates) == types(jax.eval_shape(lambda: model.params))
    assert types(new_state) == types(state)


@pytest.mark.slow
@searching(max_examples=12)
@given(*pipelines)
def test_directions_are_finite_and_reproducible(model, combiner, perturbation, unroll):
    tx = transformation(model, combiner, perturbation, unroll)
    step = jax.jit(partial(update, model, combiner, tx))
    state = tx.init(model.params)
    first = step(model.params, state)
    assert_finite(first)
    jax.tree.map(np.testing.assert_array_equal, step(model.params, state), first)


# Combiners alone

# They draw in task order, or prefer the first task.
ORDERED = {"random_weights", "pcgrad", "gradvac", "pcd-0", "pcd-0.3"}
# Of equally good tasks it takes the first.
TIES = {"krum"}
entries = st.floats(width=32) | st.integers(-4, 4).map(float)
small = st.integers(-4, 4).map(float)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@searching(max_examples=40)
@given(
    arrays(np.float32, (4, 2), elements=small)
    | arrays(np.float32, (4, 2), elements=entries),
    st.permutations(range(4)),
)
def test_combiners(name, jac, order):
    """Finite weights for any gradients; the order of the tasks does not matter."""
    make, properties, _, parameter, _ = METHODS[name]
    tasks = np.array([1.0, 0.5, 2.0, 1.5], np.float32)
    both = np.stack([jac, jac[order]]), np.stack([tasks, tasks[order]])
    directions, weights = solve(make, 4, "float32")(*both, np.float32(parameter))
    assert np.all(np.isfinite(weights))
    if np.max(np.abs(jac)) <= 4:
        assert np.all(np.isfinite(directions))
        if name not in ORDERED | TIES:
            assert "PI" in properties.split()
            lengths = np.abs(weights) @ np.linalg.norm(jac, axis=1) + 1
            np.testing.assert_allclose(*directions, atol=2e-3 * np.max(lengths), rtol=0)
