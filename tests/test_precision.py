"""Half precision: float32 masters, loss scales, and parameters stored in it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import samo_jax

from three_heads import NUM_TASKS, assert_finite, batch, distance, initial_params, types
from tiers import mostly_slow

NAMES = ("left", "right", "up")


def losses_in(dtype, data, loss_scale=None):
    """The losses computed in `dtype` from masters, their means in float32."""
    x, y = (part.astype(dtype) for part in data)

    def loss_fn(params):
        hidden = jnp.tanh(x @ params["trunk"])
        errors = {name: hidden @ params[name] - y[i] for i, name in enumerate(NAMES)}
        return {
            name: jnp.mean(jnp.square(error.astype(jnp.float32)))
            for name, error in errors.items()
        }

    return samo_jax.mixed_precision(loss_fn, dtype, loss_scale=loss_scale)


@functools.partial(jax.jit, static_argnames=("tx", "dtype"))
def update(tx, dtype, state, params, data, loss_scale):
    loss_fn = losses_in(dtype, data, loss_scale)
    losses, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
    return losses, *tx.update(grads, state, params, loss_fn=loss_fn)


# Small gradients


def square_of_small(w):
    """Outputs 2^-14 in size, of 2^13 examples: what flows back is below 2^-25."""
    x = jnp.stack([jnp.ones(2**13), jnp.tile(jnp.array([1, -1]), 2**12)])
    outputs = w @ x.astype(w.dtype)
    return jnp.mean(jnp.square(outputs.astype(jnp.float32)))


def test_a_loss_scale_saves_small_gradients():
    w = jnp.array([1.0, 0.5]) * 2**-14
    value, expected = jax.value_and_grad(square_of_small)(w)
    for loss_scale, gradient in ((None, jnp.zeros(2)), (2.0**15, expected)):
        loss_fn = samo_jax.mixed_precision(
            square_of_small, jnp.float16, loss_scale=loss_scale
        )
        found_value, found = jax.value_and_grad(loss_fn)(w)
        assert found.dtype == found_value.dtype == jnp.float32
        np.testing.assert_allclose(found_value, value, rtol=2e-3)
        np.testing.assert_allclose(found, gradient, rtol=2e-3)


def test_a_loss_scale_may_be_more_than_the_type_holds():
    """The loss is float16 itself, and its gradient small."""
    loss_fn = samo_jax.mixed_precision(
        lambda w: jnp.sum(w) * 1e-6, jnp.float16, loss_scale=2.0**20
    )
    gradient = jax.grad(lambda w: loss_fn(w) * 1e-3)(jnp.ones(2))
    np.testing.assert_allclose(gradient, 1e-9, rtol=0.05)


# Steps


METHODS = {
    "samo": (
        samo_jax.samo(
            samo_jax.fairgrad(), 0.1, mu=0.3, num_tasks=NUM_TASKS, key=0, unroll=False
        ),
        "float16",
    ),
    "f_mtl": (
        samo_jax.f_mtl(samo_jax.mgda(), 0.1, num_tasks=NUM_TASKS, unroll=False),
        "bfloat16",
    ),
    "combiner": (
        samo_jax.multitask(
            samo_jax.moco(), samo_jax.memory_sam(0.1), num_tasks=NUM_TASKS, unroll=True
        ),
        "float16",
    ),
}
TOLERANCE = {"bfloat16": 3e-2, "float16": 4e-3}


@pytest.mark.parametrize("name", mostly_slow(METHODS, but={"combiner"}))
def test_half_precision_steps_are_close_to_float32s(name):
    """With the same types of directions and states. In float32 no scale changes any.

    Unlike scaling the losses around the step, which FairGrad would see.
    """
    (tx, dtype), params, data = METHODS[name], initial_params(), batch(0)
    state = tx.init(params)

    def step(dtype, loss_scale):
        return update(tx, dtype, state, params, data, jnp.float32(loss_scale))

    expected = step("float32", 1)
    for loss_scale in (2**10, 2**-10):
        chex.assert_trees_all_close(
            step("float32", loss_scale)[:2], expected[:2], rtol=1e-5, atol=1e-7
        )
    losses, direction, new_state = step(dtype, 2**8)
    assert types((losses, direction, new_state)) == types(expected)
    assert types((direction, new_state)) == types((params, state))
    assert distance(direction, expected[1]) < TOLERANCE[dtype]


def test_another_scale_compiles_nothing():
    traces = []

    @jax.jit
    def gradient(w, loss_scale):
        traces.append(None)
        return jax.grad(
            samo_jax.mixed_precision(jnp.sum, jnp.float16, loss_scale=loss_scale)
        )(w)

    for loss_scale in (1.0, 2.0**12):
        np.testing.assert_array_equal(gradient(jnp.ones(2), loss_scale), 1)
    assert len(traces) == 1


# Overflow


def two_tasks(params, target):
    """What flows back is largest for task "b", 16 times as large as for "a"."""
    return {
        "a": jnp.mean(jnp.square(params - target).astype(jnp.float32)),
        "b": 16 * jnp.mean(jnp.square(params + target).astype(jnp.float32)),
    }


TARGET = jnp.array([1.0, 0.5], jnp.float16)
PAIR = optax.chain(
    samo_jax.multitask(samo_jax.mgda(), samo_jax.global_sam(0.01), num_tasks=2),
    optax.adam(0.05),
)


@jax.jit
def train_step(params, opt_state, scale, good):
    """The recipe of docs/precision.md."""
    loss_fn = samo_jax.mixed_precision(
        functools.partial(two_tasks, target=TARGET), jnp.float16, loss_scale=scale
    )
    _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
    updates, new = PAIR.update(grads, opt_state, params, loss_fn=loss_fn)
    left_out = new[0].skipped > opt_state[0].skipped
    some, every = jnp.any(left_out), jnp.all(left_out)
    new_params = optax.apply_updates(params, updates)
    keep = functools.partial(jax.tree.map, functools.partial(jnp.where, every))
    params, rest = keep((params, opt_state[1:]), (new_params, new[1:]))
    good = jnp.where(some, 0, good + 1)
    grown = jnp.where(good % 20 == 0, 2 * scale, scale)
    scale = jnp.where(some, jnp.maximum(scale / 2, 1), grown)
    return params, (new[0], *rest), scale, good


def test_dynamic_scales_recover_and_skipped_steps_leave_no_trace():
    params = jnp.array([2.0, -2.0])
    carry = (params, PAIR.init(params), jnp.float32(2**24), jnp.int32(0))
    skipped = [jnp.zeros(2, jnp.int32)]
    for _ in range(200):
        before, carry = carry, train_step(*carry)
        assert types(carry) == types(before)
        skipped.append(carry[1][0].skipped)
        if (skipped[-1] - skipped[-2]).all():
            chex.assert_trees_all_equal(
                (carry[0], carry[1][1:]), (before[0], before[1][1:])
            )
    params, opt_state, scale, _ = carry
    skips = np.diff(skipped, axis=0)
    whole = skips.all(axis=1)
    assert whole[0]
    assert not whole[-1]
    # Once the scale is small enough for "a", "b" alone is left out a few times.
    assert ((skips == [0, 1]).all(axis=1)).sum() >= 2
    assert skips[:, 0].sum() < skips[:, 1].sum() < 30
    assert optax.tree.get(opt_state, "count") == 200 - whole.sum()
    assert 2**8 < scale < 2**16
    # The min-norm direction is zero on the line between the minima.
    assert abs(params[0] - 2 * params[1]) < 0.05
    assert train_step._cache_size() == 1


# Parameters stored in half precision


def test_stored_float16_keeps_types_and_sums_in_float32():
    """Squares of these gradients, and their sum, are more than float16 holds."""
    params = {"w": jnp.full(64, 2.0, jnp.float16)}
    signs = jnp.tile(jnp.array([1, -1], jnp.float16), 32)

    def loss_fn(p):
        return {"a": jnp.sum(300 * p["w"]), "b": jnp.sum(300 * signs * p["w"])}

    task_grads = samo_jax.task_gradients(loss_fn, params)
    assert task_grads["w"].dtype == jnp.float16
    products = samo_jax.gramian(task_grads)
    np.testing.assert_array_equal(products, 64 * 300.0**2 * np.eye(2))
    tx = samo_jax.multitask(samo_jax.mgda(), samo_jax.global_sam(), num_tasks=2)
    direction, state = jax.jit(
        lambda grads, params: tx.update(grads, tx.init(params), params, loss_fn=loss_fn)
    )(jax.tree.map(lambda g: g[0], task_grads), params)
    assert types(direction) == types(params)
    assert state.weights.dtype == jnp.float32
    assert_finite((direction, state))
    assert not state.skipped.any()


# Derivatives, shardings, what else may be wrapped


@pytest.mark.parametrize("loss_scale", [None, 2.0**10])
def test_hessians(loss_scale):
    """By forward over reverse mode, and by reverse over reverse."""
    loss_fn = samo_jax.mixed_precision(
        lambda w: jnp.sum(w**3), jnp.float32, loss_scale=loss_scale
    )
    w, v = jnp.array([1.0, 2.0]), jnp.array([1.0, -1.0])
    gradient = jax.grad(loss_fn)
    np.testing.assert_allclose(jax.jvp(gradient, (w,), (v,))[1], 6 * w * v)
    np.testing.assert_allclose(jax.grad(lambda w: gradient(w) @ v)(w), 6 * w * v)
    if loss_scale is None:
        assert jax.jvp(loss_fn, (w,), (v,))[1] == 3 * w**2 @ v
    else:
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(loss_fn, (w,), (v,))


def test_losses_of_examples_under_vmap():
    loss_fn = samo_jax.mixed_precision(
        lambda w, x: jnp.tanh(w @ x), jnp.float16, loss_scale=8.0
    )
    w, x = jnp.ones(3), jnp.asarray(batch(0)[0], jnp.float16)
    found = jax.vmap(jax.grad(loss_fn), (None, 0))(w, x)
    expected = jax.vmap(jax.grad(lambda w, x: jnp.tanh(w @ x)), (None, 0))(w, x)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)


def test_auxiliary_data_stay_as_they_are():
    loss_fn = samo_jax.mixed_precision(
        lambda w, x: ([jnp.sum(w * x)], {"seen": x, "type": w.dtype.name}),
        jnp.bfloat16,
        has_aux=True,
    )
    losses, aux = loss_fn(jnp.ones(2), jnp.arange(2))
    assert losses == [1]
    assert losses[0].dtype == jnp.float32
    assert aux["type"] == "bfloat16"
    assert aux["seen"].dtype == jnp.int32


def sharded_step(params, x, axis_name=None, gather=lambda w: w):
    def losses(w):
        outputs = jnp.tanh(x @ gather(w))
        return [jnp.mean(outputs), jnp.mean(jnp.square(outputs - 1))]

    loss_fn = samo_jax.mixed_precision(losses, x.dtype, loss_scale=2.0**8)
    grads = samo_jax.mean_value_and_grad(loss_fn)(params)[1]
    tx = samo_jax.multitask(
        samo_jax.mgda(), samo_jax.global_sam(), num_tasks=2, axis_name=axis_name
    )
    return tx.update(grads, tx.init(params), params, loss_fn=loss_fn)[0]


@pytest.mark.slow
def test_shardings():
    """Examples over eight devices: by `jax.shard_map`, or explicit, as parameters."""
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=16), jnp.float32)
    x = jnp.asarray(rng.normal(size=(8, 16)), jnp.float16)
    expected = jax.jit(sharded_step)(params, x)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    by_device = jax.jit(
        jax.shard_map(
            functools.partial(sharded_step, axis_name="x"),
            mesh=mesh,
            in_specs=(P(), P("x")),
            out_specs=P(),
        )
    )(params, x)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params, x = jax.device_put((params, x), NamedSharding(mesh, P("x")))
        gather = functools.partial(jax.sharding.reshard, out_shardings=P())
        explicit = jax.jit(functools.partial(sharded_step, gather=gather))(params, x)
        assert jax.typeof(explicit) == jax.typeof(params)
    for direction in (by_device, explicit):
        np.testing.assert_allclose(direction, expected, rtol=1e-2, atol=1e-3)


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss_fn": 1.0}, "`loss_fn` must be a function, got 1.0"),
        ({"dtype": jnp.int8}, "`dtype` must be a floating-point type, got"),
        ({"dtype": "half-ish"}, "`dtype` must be a floating-point type, got 'half-"),
        ({"loss_scale": 0}, "`loss_scale` must be positive and finite, got 0"),
        ({"loss_scale": np.inf}, "`loss_scale` must be positive and finite, got inf"),
        ({"loss_scale": jnp.ones(2)}, "`loss_scale` must be a number or a scalar"),
        ({"loss_scale": jnp.sin}, "`loss_scale` must be a number or a scalar array"),
        ({"has_aux": True}, r"`loss_fn` must return `\(losses, aux\)`"),
        ({"params": jnp.ones(2, jnp.bfloat16)}, "`params` must be float32 masters"),
        ({"params": jnp.ones(2, int)}, "`params` must be floating-point arrays"),
    ],
)
def test_mistakes(arguments, message):
    given = {"loss_fn": jnp.sum, "dtype": jnp.float16, "params": jnp.ones(2)}
    given |= arguments
    params = given.pop("params")
    with pytest.raises(ValueError, match=message):
        samo_jax.mixed_precision(**given)(params)
