"""Frozen leaves: a step is that of a problem that does not have them."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samo_jax
from samo_jax import COMBINERS

import sharpness
from sharpness import LABELS, batch, example_losses, initial_params, update
from tiers import mostly_slow

FROZEN = {"kernel": "frozen", "up": "frozen"}
PARAMS = initial_params()
TRAINED = {name: leaf for name, leaf in PARAMS.items() if name not in FROZEN}
KEPT = {name: leaf for name, leaf in PARAMS.items() if name in FROZEN}
MGDA = samo_jax.mgda()
TRANSFORMATIONS = {
    "f_mtl": lambda labels: samo_jax.f_mtl(MGDA, num_tasks=3, param_labels=labels),
    "look_sam": lambda labels: samo_jax.look_sam(
        samo_jax.multitask(MGDA, num_tasks=3, param_labels=labels),
        *(2, 0.5),
        num_tasks=3,
        param_labels=labels,
    ),
    "samo": lambda labels: samo_jax.samo(MGDA, num_tasks=3, key=0, param_labels=labels),
    "a layer each": lambda labels: samo_jax.multitask(
        samo_jax.grouped(MGDA), num_tasks=3, param_labels=labels
    ),
    "two rows": lambda labels: samo_jax.multitask(
        MGDA, num_tasks=3, param_labels=labels, gramian_block=2
    ),
}


def without_frozen(params, data):
    """The losses of the trained leaves."""
    return example_losses(params | KEPT, data)


def assert_as_without(transformation, steps=2):
    """Directions, weights and states are those of the problem without the leaves."""
    tx = transformation(LABELS | FROZEN)
    smaller = transformation({name: LABELS[name] for name in TRAINED})
    state, expected_state = tx.init(PARAMS), smaller.init(TRAINED)
    for t in range(steps):
        found, state = update(tx, PARAMS, state, batch(t))
        expected, expected_state = update(
            smaller, TRAINED, expected_state, batch(t), without_frozen
        )
        zeros = jax.tree.map(jnp.zeros_like, KEPT)
        chex.assert_trees_all_equal({name: found[name] for name in KEPT}, zeros)
        trained = {name: found[name] for name in TRAINED}
        chex.assert_trees_all_close(trained, expected, rtol=1e-6)
    chex.assert_trees_all_close(numbers(state), numbers(expected_state), rtol=1e-6)


def numbers(state):
    """The leaves that are no keys."""
    leaves = jax.tree.leaves(state)
    return [x for x in leaves if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]


@pytest.mark.parametrize(
    "name", mostly_slow(sharpness.PERTURBATIONS, but={"joint-shared"})
)
def test_every_perturbation(name):
    perturbation = sharpness.PERTURBATIONS[name]()
    if name == "sam-masked":  # A mask, too, may have all parameters.
        mask = {name: name != "bias" for name in LABELS}
        perturbation = samo_jax.sam(
            sharpness.RADIUS, mask=lambda p: {name: mask[name] for name in p}
        )
    assert_as_without(
        lambda labels: samo_jax.multitask(
            MGDA, perturbation, num_tasks=3, key=0, param_labels=labels
        )
    )


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.slow
def test_every_transformation(name):
    assert_as_without(TRANSFORMATIONS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", COMBINERS)
def test_every_combiner(name):
    combiner = COMBINERS[name].make(3, jax.random.key(0))
    if "second batch" in COMBINERS[name].needs:
        pytest.skip("needs sample_loss_fns, which test_samples has")
    assert_as_without(
        lambda labels: samo_jax.multitask(
            combiner, samo_jax.global_sam(), num_tasks=3, param_labels=labels
        )
    )


def test_samples_and_probes_have_frozen_leaves_inside():
    def at(params, t):
        return jax.tree.map(jnp.mean, example_losses(params, batch(t)))

    def smaller_at(params, t):
        return jax.tree.map(jnp.mean, without_frozen(params, batch(t)))

    directions = []
    for labels, params, losses in (
        (LABELS | FROZEN, PARAMS, at),
        ({name: LABELS[name] for name in TRAINED}, TRAINED, smaller_at),
    ):
        tx = samo_jax.samo(
            samo_jax.modo(), num_tasks=3, key=0, param_labels=labels, unroll=False
        )
        found, _ = tx.update(
            jax.tree.map(jnp.ones_like, params),
            tx.init(params),
            params,
            loss_fn=lambda p, losses=losses: losses(p, 0),
            probe_loss_fn=lambda p, losses=losses: losses(p, 1),
            sample_loss_fns=[lambda p, losses=losses: losses(p, 2)],
        )
        directions.append({name: found[name] for name in TRAINED})
    chex.assert_trees_all_close(*directions, rtol=1e-6)


QUANTISED = {
    "encoder": jnp.array([[3, -2], [1, 4]], jnp.int8),
    "scale": jnp.array(0.1, jnp.bfloat16),
    "gate": jnp.array([True, False]),
    "adapter": jnp.array([0.5, -1.0]),
    "head": jnp.array(2.0),
}
QUANTISED_LABELS = dict.fromkeys(("encoder", "scale", "gate"), "frozen") | {
    "adapter": "shared",
    "head": "left",
}


def quantised_losses(params):
    weights = params["encoder"] * params["scale"].astype(float)
    features = jnp.where(params["gate"], weights @ params["adapter"], 1.0)
    return {
        "left": params["head"] * features[0] ** 2,
        "right": (features[0] + 1) ** 2,
    }


@pytest.mark.parametrize(
    "frozen_grads", mostly_slow(["zeros", "None", "float0"], but={"None"})
)
def test_leaves_of_any_dtype(frozen_grads):
    """Whatever stands for their gradients; they have no state in an optimiser."""
    labels = jax.tree.map(lambda x: x if x == "frozen" else "train", QUANTISED_LABELS)
    tx = optax.chain(
        samo_jax.samo(MGDA, num_tasks=2, key=0, param_labels=QUANTISED_LABELS),
        optax.partition(
            {"train": optax.adam(0.1), "frozen": optax.set_to_zero()}, labels
        ),
    )

    @jax.jit
    def step(params, state):
        losses, grads = samo_jax.mean_value_and_grad(
            quantised_losses, param_labels=QUANTISED_LABELS
        )(params)
        for name in ("encoder", "scale", "gate"):
            chex.assert_trees_all_equal_shapes_and_dtypes(grads[name], params[name])
            if frozen_grads != "zeros":
                float0 = np.zeros(params[name].shape, jax.dtypes.float0)
                grads[name] = None if frozen_grads == "None" else float0
        updates, state = tx.update(grads, state, params, loss_fn=quantised_losses)
        return optax.apply_updates(params, updates), state, losses

    params, state = QUANTISED, tx.init(QUANTISED)
    first = sum(quantised_losses(params).values())
    for _ in range(30):
        params, state, losses = step(params, state)
    assert sum(losses.values()) < first / 2
    for name in ("encoder", "scale", "gate"):
        chex.assert_trees_all_equal(params[name], QUANTISED[name])
        chex.assert_trees_all_equal_dtypes(params[name], QUANTISED[name])
    moments = optax.tree.get(state, "mu")
    assert {leaf.shape for leaf in jax.tree.leaves(moments)} == {(2,), ()}


def test_gradients_of_tasks_leave_them_out():
    grads = samo_jax.task_gradients(
        quantised_losses, QUANTISED, param_labels=QUANTISED_LABELS
    )
    assert grads["encoder"] is grads["scale"] is grads["gate"] is None
    assert grads["adapter"].shape == (2, 2)


@pytest.mark.parametrize("rows", ["None", "float0", "ones"])
def test_rows_of_frozen_leaves_do_not_matter(rows):
    """`task_gradients` gives none, `jax.vmap` of `jax.grad` any."""
    tx = samo_jax.combine_gradients(MGDA, num_tasks=2, param_labels=QUANTISED_LABELS)
    grads = samo_jax.task_gradients(
        quantised_losses, QUANTISED, param_labels=QUANTISED_LABELS
    )
    expected = samo_jax.multitask(MGDA, num_tasks=2, param_labels=QUANTISED_LABELS)
    state = tx.init(QUANTISED)
    if rows != "None":
        dtype = jax.dtypes.float0 if rows == "float0" else np.float32
        grads["encoder"] = np.ones((2, 2, 2), dtype)
    losses = quantised_losses(QUANTISED)
    found, _ = tx.update(grads, state, QUANTISED, losses=losses)
    directions, _ = expected.update(
        QUANTISED, expected.init(QUANTISED), QUANTISED, loss_fn=quantised_losses
    )
    chex.assert_trees_all_close(found, directions)
    without_params, _ = tx.update(grads, state, losses=losses)
    assert without_params["encoder"] is None


def test_one_task():
    tx = samo_jax.single_task(samo_jax.sam(0.1), param_labels={"a": "frozen", "b": "0"})
    params = {"a": jnp.array(3), "b": jnp.array([1.0, 2.0])}
    updates, _ = tx.update(
        {"a": None, "b": jnp.ones(2)},
        tx.init(params),
        params,
        loss_fn=lambda p: p["a"] * jnp.sum(p["b"] ** 2),
    )
    assert updates["a"] == 0
    assert updates["a"].dtype == params["a"].dtype
    eps = 0.1 / np.sqrt(2)
    np.testing.assert_allclose(updates["b"], 6 * (np.array([1, 2]) + eps), rtol=1e-6)


def test_an_equinox_model_that_is_frozen_in_part():
    model = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    labels = jax.tree.map(lambda _: "shared", params)
    labels = eqx.tree_at(
        lambda tree: tree.layers[0],
        labels,
        replace=jax.tree.map(lambda _: "frozen", params.layers[0]),
    )

    def loss_fn(params):
        return jnp.square(eqx.combine(params, static)(jnp.ones(2)) - 1)

    tx = samo_jax.samo(MGDA, num_tasks=2, key=0, param_labels=labels)
    _, grads = samo_jax.mean_value_and_grad(loss_fn, param_labels=labels)(params)
    updates, _ = tx.update(grads, tx.init(params), params, loss_fn=loss_fn)
    assert not any(map(jnp.any, jax.tree.leaves(updates.layers[0])))
    assert all(map(jnp.any, jax.tree.leaves(updates.layers[1])))


@pytest.mark.parametrize("unroll", mostly_slow([True, False], but={True}))
def test_no_backward_work(unroll):
    """The compiled step has the operations of the step without frozen leaves."""
    wide = {"encoder": jnp.ones((64, 64)), "adapter": jnp.ones((64, 2))}
    x = jnp.ones((32, 64))

    def losses(params):
        return jnp.mean((jnp.tanh(x @ params["encoder"]) @ params["adapter"]) ** 2, 0)

    def flops(labels, params, losses):
        tx = samo_jax.multitask(
            MGDA,
            samo_jax.local_sam(),
            num_tasks=2,
            param_labels=labels,
            unroll=unroll,
        )

        def step(params, state):
            _, grads = samo_jax.mean_value_and_grad(losses, param_labels=labels)(params)
            return tx.update(grads, state, params, loss_fn=losses)

        compiled = jax.jit(step).lower(params, tx.init(params)).compile()
        return compiled.cost_analysis()["flops"]

    frozen = flops({"encoder": "frozen", "adapter": "shared"}, wide, losses)
    without = flops(None, wide["adapter"], lambda a: losses(wide | {"adapter": a}))
    trained = flops(None, wide, losses)
    # Where the encoder is a constant, XLA may compute its part when it compiles.
    assert frozen < 0.55 * trained
    assert frozen >= without


# Labels that the losses give

W = jnp.ones((3, 3))
custom = jax.custom_vjp(lambda x, w: x @ w)
custom.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, ct: (ct @ r[1].T, r[0].T @ ct))
OWN = {"trunk": W, "left": W, "right": W, "old": W, "count": jnp.ones((), int)}
OWN_LABELS = {
    "trunk": "shared",
    "left": "left",
    "right": "right",
    "old": "frozen",
    "count": "frozen",
}


def heads(params, apply=jnp.matmul, wrap=lambda fn: fn):
    x = jnp.ones((2, 3))
    features = wrap(lambda w: jnp.tanh(apply(x, w)))(params["trunk"])
    features += apply(x, jax.lax.stop_gradient(params["old"])) * params["count"]
    return {
        name: jnp.sum(wrap(lambda f, w: apply(f, w))(features, params[name]) ** 2)
        for name in ("left", "right")
    }


def scanned(x, w):
    return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=3)[0]


def dropped(x, w):
    return jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, x.shape), x, 0) @ w


def on_the_host(x, w):
    """An operation that JAX cannot look into, inside a derivative that it can."""
    shape = jax.ShapeDtypeStruct((2, 3), x.dtype)

    def product(x, w):
        return jax.pure_callback(
            lambda x, w: np.asarray(x) @ np.asarray(w),
            *(shape, x, w),
            vmap_method="sequential",
        )

    kernel = jax.custom_vjp(product)
    kernel.defvjp(
        lambda x, w: (product(x, w), (x, w)),
        lambda r, ct: (ct @ r[1].T, r[0].T @ ct),
    )
    return kernel(x, w)


PROGRAMS = {
    "plain": heads,
    "jit": lambda p: heads(p, wrap=jax.jit),
    "as a whole under jit": jax.jit(heads),
    "checkpoint": lambda p: heads(p, wrap=jax.checkpoint),
    "scan": lambda p: heads(p, scanned),
    "custom_vjp": lambda p: heads(p, custom),
    "custom_vjp of both": lambda p: both(p),
    "dropout": lambda p: heads(p, dropped),
    "kernel": lambda p: heads(p, on_the_host),
}


@jax.custom_vjp
def both(params):
    return heads(params)


def _both_forward(params):
    return jax.vjp(heads, params)


both.defvjp(_both_forward, lambda pullback, ct: pullback(ct))


@pytest.mark.parametrize("program", PROGRAMS)
def test_inferred_labels(program):
    expected = dict(OWN_LABELS)
    if program == "custom_vjp of both":  # Its derivative is not known to stop there.
        expected["old"] = "shared"
    assert samo_jax.infer_labels(PROGRAMS[program], OWN) == expected


def test_known_labels_stay():
    labels = {"trunk": "frozen"} | dict.fromkeys(OWN, "infer")
    known = labels | {"trunk": "frozen", "left": "shared"}
    assert samo_jax.infer_labels(heads, OWN, known) == OWN_LABELS | known | {
        "right": "right",
        "old": "frozen",
        "count": "frozen",
    }


@pytest.mark.slow
def test_infer_in_update_is_the_labels():
    """Under jit, too; a label that is given may stand beside it."""
    directions = []
    for labels in ("infer", OWN_LABELS | {"left": "infer"}, OWN_LABELS):
        tx = samo_jax.samo(MGDA, num_tasks=2, key=0, param_labels=labels)

        @jax.jit
        def step(params, state, tx=tx, labels=labels):
            _, grads = samo_jax.mean_value_and_grad(heads, param_labels=labels)(params)
            return tx.update(grads, state, params, loss_fn=heads)

        directions.append(step(OWN, tx.init(OWN)))
    chex.assert_trees_all_equal(*directions)


def test_what_cannot_be_inferred_is_named():
    """Of two results of one operation nobody knows which uses which input."""

    def losses(params):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        left, right = jax.pure_callback(
            lambda a, b: (a.sum(), b.sum()),
            (shape, shape),
            params["a"],
            params["b"],
            vmap_method="sequential",
        )
        return {"left": left + jnp.sum(params["c"]), "right": right}

    params = dict.fromkeys("abc", W)
    with pytest.raises(ValueError, match=r"leaf '\['a'\]'.*between it and 'left', 'r"):
        samo_jax.infer_labels(losses, params)
    known = {"a": "left", "b": "right", "c": "infer"}
    assert samo_jax.infer_labels(losses, params, known) == known | {"c": "left"}
