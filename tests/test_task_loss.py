"""The loss of one task in a loop: the same as by itself, without the other heads."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from samo_jax import task_gradients
from samo_jax._gradients import value_and_gradient_at
from samo_jax._task_loss import split_tasks, task_loss

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
    )
} | {
    "jitted": jax.jit(by_head),
    "checkpointed": jax.checkpoint(by_head),
    "nothing_shared": lambda params: [
        jnp.sum(head**2) for head in params["heads"].values()
    ],
}


def assert_close(found, wanted, rtol=1e-5):
    close = partial(np.testing.assert_allclose, rtol=rtol, atol=1e-6)
    jax.tree.map(close, found, wanted)


def row(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loop_gives_the_gradients_of_each_loss_by_itself(name):
    params = make_params()

    def loss_of(params, i):
        losses = LOSSES[name](params)
        losses = losses if hasattr(losses, "shape") else jax.tree.leaves(losses)
        return jnp.float32(losses[i])

    found = jax.jit(partial(task_gradients, LOSSES[name], unroll=False))(params)
    for i in range(K):
        assert_close(row(found, i), jax.grad(loss_of)(params, i))


@pytest.mark.parametrize("name", LOSSES)
def test_a_traced_task_has_its_loss_value_and_gradient(name):
    params = make_params()
    loss = jax.jit(lambda i: task_loss(LOSSES[name], params, i, None))
    gradient = jax.jit(
        jax.grad(lambda params, i: task_loss(LOSSES[name], params, i, None))
    )

    def exact(params, i):
        return task_loss(LOSSES[name], params, i, None).astype(jnp.float32)

    for i in (0, 1, 4, 8):
        assert loss(i) == pytest.approx(float(exact(params, i)), rel=1e-2)
        assert_close(gradient(params, i), jax.grad(exact)(params, i), rtol=1e-2)


@pytest.mark.parametrize("name", ["by_head", "with_integers", "with_dropout"])
@pytest.mark.parametrize("unroll", [None, 4])
def test_each_task_at_its_own_one_of_a_few_points(name, unroll):
    points = [make_params(seed) for seed in range(3)]
    index = jnp.arange(K) % 3
    own = value_and_gradient_at(LOSSES[name], points, index, unroll)
    loop = lambda: jax.lax.map(own, jnp.arange(K), batch_size=unroll)  # noqa: E731
    losses, grads = jax.jit(loop)()
    for i in range(K):
        exact = jax.value_and_grad(partial(task_loss, LOSSES[name], i=i, unroll=None))
        loss, grad = exact(points[i % 3])
        np.testing.assert_allclose(losses[i], loss, rtol=1e-5)
        assert_close(row(grads, i), grad)


def products(function, *args):
    return str(jax.make_jaxpr(function)(*args)).count("dot_general")


def test_trunk_has_no_heads_and_a_tail_no_other_head():
    params = make_params()
    split = split_tasks(by_head, params)
    links = split.trunk(params)
    assert products(split.losses, params) == 1 + K
    assert products(split.trunk, params) == 1
    # One in each branch, and all for platforms without branches.
    assert products(split.tail, *links, jnp.array(0)) == 2 * K


def test_branches_are_for_hosts_that_need_not_wait():
    gradients = jax.jit(partial(task_gradients, by_head, unroll=False))
    traced = gradients.trace(make_params())

    def cases(platform):
        return traced.lower(lowering_platforms=(platform,)).as_text().count("case")

    # What is left is the platform's own case, of a constant.
    assert cases("cuda") == cases("tpu") < cases("cpu")


def test_a_fault_in_one_head_stays_there():
    def loss_fn(params):
        head = params["heads"]["task3"]
        return by_head(params) | {"task3": jnp.sqrt(-jnp.sum(head**2))}

    grads = jax.jit(partial(task_gradients, loss_fn, unroll=False))(make_params())
    faulty = np.isnan(grads["heads"]["task3"]).any(axis=(1, 2))
    np.testing.assert_array_equal(faulty, np.arange(K) == 3)
    assert np.isfinite(grads["trunk"]).all()


def test_effects_are_kept_once_a_pass():
    seen = []

    def loss_fn(params):
        losses = by_head(params)
        io_callback(lambda loss: seen.append(float(loss)), None, losses["task7"])
        return losses

    params = make_params()
    loss = task_loss(loss_fn, params, jnp.array(2), None)
    jax.effects_barrier()
    assert loss == pytest.approx(float(by_head(params)["task2"]))
    assert seen == pytest.approx([float(by_head(params)["task7"])])
