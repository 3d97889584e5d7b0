"""Loss functions of every kind: looked into or left whole, the gradients are right."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import samo_jax
from samo_jax import task_gradients
from samo_jax._shared_points import look_into

from tiers import mostly_slow

K = 9
NAMES = [f"task{i}" for i in range(K)]
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
KEY = jax.random.key(0)


def make_params(seed: int = 0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {"trunk": draw(4, 5), "heads": {name: draw(5, 2) for name in NAMES}}


def features(params):
    return jnp.tanh(X @ params["trunk"])


def by_head(params):
    h = features(params)
    return {name: jnp.mean((h @ params["heads"][name]) ** 2) for name in NAMES}


def one_array(params):
    return jnp.stack(list(by_head(params).values()))


def one_output_for_all(params):
    return jnp.mean(features(params) @ jnp.ones((5, K)), axis=0) ** 2


def neighbours_heads(params):
    h, heads = features(params), list(params["heads"].values())
    return [jnp.mean(h @ heads[i] @ heads[i - 1].T) for i in range(K)]


def tails_in_common(params):
    """Pairs of tasks share what no other task needs."""
    h, heads = features(params), list(params["heads"].values())
    pairs = [jnp.sin(h @ head) for head in heads[::2]]
    return [jnp.mean(pairs[i // 2]) * (i + 1) for i in range(K)]


def with_integers(params):
    h = features(params)
    best = jnp.argmax(h, axis=1)
    return [
        jnp.mean((h @ head)[jnp.arange(len(best)), best % 2])
        for head in params["heads"].values()
    ]


def with_dropout(params):
    h = features(params)
    keys = jax.random.split(KEY, 2 * K)

    def loss(i, head):
        kept = jax.random.bernoulli(keys[i], 0.5, h.shape)
        return jnp.mean((jnp.where(kept, h, 0) @ head) ** 2)

    return [loss(i, head) for i, head in enumerate(params["heads"].values())]


def with_constants(params):
    losses = list(by_head(params).values())
    return [jnp.float32(3.0), jnp.sum(X), params["trunk"][0, 0], *losses[3:]]


def of_two_dtypes(params):
    return [
        loss.astype(jnp.bfloat16) if i % 2 else loss
        for i, loss in enumerate(by_head(params).values())
    ]


@jax.custom_vjp
def clipped(x):
    return x


clipped.defvjp(lambda x: (x, None), lambda _, ct: (jnp.clip(ct, -0.01, 0.01),))


def with_custom_vjp(params):
    return {name: clipped(loss) * 2 for name, loss in by_head(params).items()}


def of_complex_features(params):
    z = jnp.fft.fft(X @ params["trunk"], axis=0)
    return [jnp.mean(jnp.abs(z) ** (1 + i / K)) for i in range(K)]


def heads_of(h, params):
    return [jnp.mean((h @ head) ** 2) for head in params["heads"].values()]


def through_a_ref(params):
    ref = jax.new_ref(jnp.zeros((6, 5)))
    ref[...] = X @ params["trunk"]
    return heads_of(ref[...], params)


def with_custom_vmap(params):
    """It has no derivative, so it is of the batch."""

    @jax.custom_batching.custom_vmap
    def shifted(x):
        return x + 1

    @shifted.def_vmap
    def rule(axis_size, in_batched, x):
        del axis_size
        return x + 1, in_batched[0]

    h = features(params) + shifted(jnp.mean(X))
    return [jnp.mean((h @ head) ** 2) for head in params["heads"].values()]


def with_a_closure(params):
    """A custom derivative that uses what the loss function has computed."""
    mask = jnp.sin(X[:, :1]) > 0

    @jax.custom_vjp
    def masked(h):
        return jnp.where(mask, h, 0)

    masked.defvjp(
        lambda h: (masked(h), None), lambda _, ct: (jnp.where(mask, 2 * ct, 0),)
    )
    return heads_of(masked(features(params)), params)


def with_a_jvp_closure(params):
    mask = jnp.sin(X[:, :1]) > 0

    @jax.custom_jvp
    def masked(h):
        return jnp.where(mask, h, 0)

    masked.defjvp(lambda h, dh: (masked(*h), jnp.where(mask, 2 * dh[0], 0)))
    return heads_of(masked(features(params)), params)


@jax.custom_vjp
def reported(x):
    return x


def report(_, cotangent):
    jax.debug.callback(lambda _: None, cotangent.sum())
    return (cotangent,)


reported.defvjp(lambda x: (x, None), report)


def with_a_callback_backwards(params):
    return heads_of(reported(features(params)), params)


@jax.custom_jvp
def numpy_sine(x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(np.sin, shape, x, vmap_method="expand_dims")


@numpy_sine.defjvp
def _(primals, tangents):
    (x,) = primals
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    cosine = jax.pure_callback(np.cos, shape, x, vmap_method="expand_dims")
    return numpy_sine(x), cosine * tangents[0]


def with_a_pure_callback(params):
    return heads_of(numpy_sine(X @ params["trunk"]), params)


def with_python_numbers(params):
    return [0.0, np.float32(1.0), *heads_of(features(params), params)[2:]]


def clipped_features(params):
    """A backward pass that is not linear in the cotangent."""
    return heads_of(clipped(features(params)), params)


LOSSES = {
    function.__name__: function
    for function in (
        by_head,
        one_array,
        one_output_for_all,
        neighbours_heads,
        tails_in_common,
        with_integers,
        with_dropout,
        with_constants,
        of_two_dtypes,
        with_custom_vjp,
        with_custom_vmap,
        of_complex_features,
        through_a_ref,
        with_a_closure,
        with_a_jvp_closure,
        with_a_callback_backwards,
        with_a_pure_callback,
        with_python_numbers,
        clipped_features,
    )
} | {
    "jitted": jax.jit(by_head),
    "checkpointed": jax.checkpoint(by_head),
    "nothing_shared": lambda params: [
        jnp.sum(head**2) for head in params["heads"].values()
    ],
}


SOME_LOSSES = {
    "by_head",
    "tails_in_common",
    "with_custom_vjp",
    "through_a_ref",
    "with_python_numbers",
}
LEFT_WHOLE = {
    "through_a_ref",
    "with_a_closure",
    "with_a_jvp_closure",
    "with_a_pure_callback",
}


@pytest.fixture(params=mostly_slow(["rewritten", "left whole"], but={"rewritten"}))
def rewriting(request, monkeypatch):
    monkeypatch.setattr(
        samo_jax.config, "rewrite_programs", request.param == "rewritten"
    )
    return request.param


def assert_close(found, wanted, rtol=1e-5):
    close = partial(np.testing.assert_allclose, rtol=rtol, atol=1e-6)
    jax.tree.map(close, found, wanted)


def one_by_one(loss_fn, params):
    """Every task's gradient by plain JAX, stacked."""

    def loss_of(params, i):
        losses = loss_fn(params)
        losses = losses if hasattr(losses, "shape") else jax.tree.leaves(losses)
        return jnp.float32(losses[i])

    grads = [jax.grad(loss_of)(params, i) for i in range(K)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)


@pytest.mark.usefixtures("rewriting")
@pytest.mark.parametrize("name", mostly_slow(LOSSES, but=SOME_LOSSES))
def test_loops_and_chunks_give_the_gradients_of_plain_jax(name):
    params, loss_fn = make_params(), LOSSES[name]
    wanted = jax.jit(partial(one_by_one, loss_fn))(params)
    for unroll in (False, 4):
        found = jax.jit(partial(task_gradients, loss_fn, unroll=unroll))(params)
        assert_close(found, wanted, rtol=1e-2 if name == "of_two_dtypes" else 1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_only_known_programs_are_taken_apart(name):
    assert look_into(LOSSES[name], make_params()).is_known == (name not in LEFT_WHOLE)


def test_nothing_is_looked_into_where_rewriting_is_off(monkeypatch):
    monkeypatch.setattr(samo_jax.config, "rewrite_programs", False)
    assert not look_into(by_head, make_params()).is_known


def labels(params):
    return {"trunk": "shared", "heads": {name: name for name in params["heads"]}}


def direction(loss_fn, params, perturbation=None, **kwargs):
    tx = samo_jax.multitask(
        samo_jax.upgrad(), perturbation, num_tasks=K, key=0, **kwargs
    )
    _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
    return tx.update(grads, tx.init(params), params, loss_fn=loss_fn)[0]


STEPS = [
    "by_head",
    "of_complex_features",
    "through_a_ref",
    "with_a_closure",
    "with_a_callback_backwards",
    "with_a_pure_callback",
    "clipped_features",
]
SHARED_PROBE = samo_jax.joint_sam(local=samo_jax.probe(shared=True))


@pytest.mark.usefixtures("rewriting")
@pytest.mark.parametrize("name", mostly_slow(STEPS, but={"clipped_features"}))
@pytest.mark.slow
def test_a_gramian_by_blocks_is_that_of_all_gradients(name):
    """Also where backward passes are not linear, and columns would be wrong."""
    run = jax.jit(
        lambda params: [
            direction(LOSSES[name], params, samo_jax.global_sam(), **kwargs)
            for kwargs in ({"unroll": False}, {"gramian_block": 1})
        ]
    )
    assert_close(*run(make_params()), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("rewriting")
@pytest.mark.parametrize("name", STEPS)
def test_shared_points_are_the_tasks_own(name):
    perturbations = SHARED_PROBE, SHARED_PROBE._replace(shared_perturbations=None)
    run = jax.jit(
        lambda params: [
            direction(LOSSES[name], params, perturbation, unroll=False)
            for perturbation in perturbations
        ]
    )
    assert_close(*run(make_params()), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", mostly_slow([2, K], but={2}))
def test_steps_without_jit(num_tasks):
    def loss_fn(params):
        return list(by_head(params).values())[:num_tasks]

    tx = samo_jax.multitask(samo_jax.upgrad(), SHARED_PROBE, num_tasks=num_tasks, key=0)

    def update(params):
        _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        return tx.update(grads, tx.init(params), params, loss_fn=loss_fn)[0]

    params = make_params()
    with jax.disable_jit():
        found = update(params)
    assert_close(found, jax.jit(update)(params), rtol=1e-3)


@pytest.mark.usefixtures("rewriting")
@pytest.mark.parametrize(
    ("perturbation", "combiner", "passes"),
    mostly_slow(
        [
            (samo_jax.global_sam(), samo_jax.mean(), 2),
            (SHARED_PROBE, samo_jax.upgrad(), 5),
            (samo_jax.global_sam(), samo_jax.upgrad(), 2),
            (samo_jax.joint_sam(), samo_jax.upgrad(), 1 + 3 * K),
        ],
        but=2,
        several=True,
    ),
    ids=["global mean", "shared probe", "global", "joint"],
)
def test_callbacks_run_once_a_forward_pass(perturbation, combiner, passes):
    seen = []

    def loss_fn(params):
        h = features(params)
        jax.debug.callback(lambda _: seen.append(1), h.sum())
        return heads_of(h, params)

    tx = samo_jax.multitask(combiner, perturbation, num_tasks=K, key=0)
    params = make_params()
    _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
    jax.jit(partial(tx.update, loss_fn=loss_fn))(grads, tx.init(params), params)
    jax.effects_barrier()
    assert len(seen) == passes


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
    "softmax": jax.nn.softmax,
    "logsumexp": jax.nn.logsumexp,
    "norm": jnp.linalg.norm,
    "checkpoint": jax.checkpoint(jax.nn.relu),
    "scan": lambda x: lax.scan(lambda c, _: (jax.nn.relu(c), None), x, length=2)[0],
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_custom_derivatives_of_jax_are_known(name):
    """Also inside other transformations, where tracers are about."""
    found = []

    def look(x):
        x = jnp.sin(x)

        def loss_fn(x):
            return [jnp.sum(ACTIVATIONS[name](x) * i) for i in range(3)]

        found.append(look_into(loss_fn, x).is_known)
        return jnp.sum(x)

    look(X)
    for transformed in (jax.jit(look), jax.grad(look), jax.jit(jax.grad(look))):
        transformed(X)
    jax.jit(jax.vmap(look))(X[None])
    jax.jit(partial(lax.map, look))(X[None])
    assert found == [True] * 6


# A fault in one head

FAULTY = 3


def with_a_fault(params):
    """The derivatives of one head, and its loss, are NaN."""
    name = NAMES[FAULTY]
    return by_head(params) | {
        name: jnp.sqrt(-jnp.sum(params["heads"][name] ** 2)) + by_head(params)[name]
    }


@pytest.mark.parametrize("unroll", mostly_slow([True, False, 4], but={False}))
def test_a_fault_in_one_head_stays_there(unroll):
    params = make_params()
    grads = jax.jit(partial(task_gradients, with_a_fault, unroll=unroll))(params)
    faulty = np.isnan(grads["heads"][NAMES[FAULTY]]).any(axis=(1, 2))
    np.testing.assert_array_equal(faulty, np.arange(K) == FAULTY)
    others = np.arange(K) != FAULTY
    assert np.isfinite(grads["trunk"][others]).all()


PERTURBATIONS = {
    "plain": None,
    "global": samo_jax.global_sam(),
    "shared probe": SHARED_PROBE,
    "local": samo_jax.local_sam(),
    "joint": samo_jax.joint_sam(),
}


@pytest.mark.parametrize(
    "combiner", mostly_slow([samo_jax.upgrad(), samo_jax.mean()], but=1)
)
@pytest.mark.parametrize(
    "perturbation", mostly_slow(PERTURBATIONS, but={"plain", "shared probe"})
)
def test_a_step_goes_on_without_the_faulty_task(perturbation, combiner):
    tx = samo_jax.multitask(
        combiner,
        PERTURBATIONS[perturbation],
        num_tasks=K,
        key=0,
        param_labels=labels,
        unroll=False,
    )
    params = make_params()
    _, grads = samo_jax.mean_value_and_grad(with_a_fault)(params)
    update = jax.jit(partial(tx.update, loss_fn=with_a_fault))
    updates, state = update(grads, tx.init(params), params)
    np.testing.assert_array_equal(state.skipped, np.arange(K) == FAULTY)
    assert np.any(updates["trunk"])
    assert not np.any(updates["heads"][NAMES[FAULTY]])


def test_isolated_heads_have_second_derivatives():
    params = {"trunk": make_params()["trunk"]}
    heads = make_params()["heads"]

    def loss_fn(params):
        return by_head(params | {"heads": heads})

    def curvature(params):
        """Of the summed task gradients' squared length."""
        grads = task_gradients(loss_fn, params, unroll=False)
        return jnp.sum(grads["trunk"] ** 2)

    def plain(params):
        return jnp.sum(one_by_one(loss_fn, params)["trunk"] ** 2)

    for derivative in (jax.grad, jax.jacfwd):
        found, wanted = (
            jax.jit(derivative(function))(params) for function in (curvature, plain)
        )
        assert_close(found, wanted, rtol=1e-4)


# Several devices

ORDER = ("NHWC", "HWIO", "NHWC")


def sharded(function):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    return jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=(P(), P("x")), out_specs=P())
    )


def test_a_convolution_under_shard_map_inside_the_loss():
    images = jax.random.normal(jax.random.key(0), (4, 5, 5, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, K))

    def mean_over_devices(kernel, images):
        y = jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=ORDER
        )
        return jax.lax.pmean(jnp.mean(jnp.sin(y), axis=(0, 1, 2)), "x")

    def loss_fn(kernel):
        return sharded(mean_over_devices)(kernel, images)

    found = jax.jit(partial(task_gradients, loss_fn, unroll=False))(kernel)
    assert_close(found, jax.jit(jax.jacrev(loss_fn))(kernel))


@pytest.mark.parametrize(
    "name", mostly_slow(["plain", "shared probe", "local"], but={"plain"})
)
def test_devices_with_a_constant_loss(name):
    tx = samo_jax.multitask(
        samo_jax.upgrad(), PERTURBATIONS[name], num_tasks=K, key=0, axis_name="x"
    )

    def step(params, x):
        def loss_fn(params):
            h = jnp.tanh(x @ params["trunk"])
            return [jnp.float32(1.0), 2.0, *heads_of(h, params)[2:]]

        _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        grads = jax.lax.pmean(grads, "x")
        updates, state = tx.update(grads, tx.init(params), params, loss_fn=loss_fn)
        return optax.apply_updates(params, updates), state.weights

    moved, weights = sharded(step)(make_params(), X)
    assert np.isfinite(moved["trunk"]).all()
    assert np.isfinite(weights).all()
