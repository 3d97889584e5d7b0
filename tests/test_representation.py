"""`gramian_of`: weights of a part's Gramian, and the exact direction for them."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import samo_jax

from passes import flops
from tiers import mostly_slow

pytestmark = pytest.mark.usefixtures("x64")
TASKS = ["a", "b", "c"]
LABELS = {"first": "shared", "second": "shared"} | {name: name for name in TASKS}
ALPHA = 2.0
FAIRGRAD = samo_jax.fairgrad(ALPHA)
SHARED_PROBE = samo_jax.joint_sam(0.1, local=samo_jax.probe(shared=True))


def make_params():
    rng = np.random.default_rng(0)
    shapes = {"first": (5, 7), "second": (7, 6)} | dict.fromkeys(TASKS, (6, 2))
    return {k: jnp.asarray(rng.normal(size=s)) for k, s in shapes.items()}


X, Y = (jnp.asarray(np.random.default_rng(1).normal(size=(8, n))) for n in (5, 2))


def trunk(params, x=X):
    return jnp.tanh(jnp.tanh(x @ params["first"]) @ params["second"])


def heads(params, z, y=Y):
    return {
        name: jnp.mean((z @ params[name] - (i + 1) * y) ** 2)
        for i, name in enumerate(TASKS)
    }


def unmarked(params):
    return heads(params, trunk(params))


def marked(params):
    return heads(params, samo_jax.representation(trunk(params)))


def marked_in_trunk(params):
    @jax.checkpoint
    @jax.jit
    def features(params):
        return samo_jax.representation(trunk(params))

    return heads(params, features(params))


def at_the_end_of_a_scan(params):
    def layer(z, _):
        return samo_jax.representation(jnp.tanh(z)), None

    z, _ = jax.lax.scan(layer, jnp.arctanh(trunk(params)), None, length=1)
    return heads(params, z)


class Trunk(nn.Module):
    """A trunk that marks what it returns, from given kernels."""

    kernels: tuple

    @nn.compact
    def __call__(self, x):
        for kernel in self.kernels:
            x = jnp.tanh(x @ kernel)
        return samo_jax.representation(x)


def in_a_module(params):
    z = nn.remat(Trunk)((params["first"], params["second"])).apply({}, X)
    return heads(params, z)


def with_heads_in_one_operation(params):
    """One product for all heads."""
    z = samo_jax.representation(trunk(params))
    kernels = jnp.stack([params[name] for name in TASKS])
    outputs = jnp.einsum("nd,kdo->kno", z, kernels)
    targets = jnp.stack([(i + 1) * Y for i in range(3)])
    return dict(zip(TASKS, jnp.mean((outputs - targets) ** 2, (1, 2)), strict=True))


LOSSES = {
    "unmarked": unmarked,
    "marked": marked,
    "in jit": jax.jit(marked),
    "in checkpoint": jax.checkpoint(marked),
    "in both": jax.checkpoint(jax.jit(marked)),
    "trunk in both": marked_in_trunk,
    "scan": at_the_end_of_a_scan,
    "module": in_a_module,
    "one operation": with_heads_in_one_operation,
}


def multitask(combiner=FAIRGRAD, perturbation=None, **kwargs):
    arguments = {"num_tasks": 3, "key": 0, "param_labels": LABELS}
    arguments |= {"gramian_of": "representation"} | kwargs
    return samo_jax.multitask(combiner, perturbation, **arguments)


def update(tx, loss_fn, params, **kwargs):
    grads = samo_jax.mean_value_and_grad(loss_fn)(params)[1]
    direction, state = jax.jit(
        lambda grads: tx.update(
            grads, tx.init(params), params, loss_fn=loss_fn, **kwargs
        )
    )(grads)
    return direction, state


def gradients(loss_fn, at):
    """Each task's gradient by plain JAX."""
    return {
        name: jax.grad(lambda params, name=name: loss_fn(params)[name])(at)
        for name in TASKS
    }


def weights_at(points):
    """FairGrad's weights of the gradients by z, at each task's point."""
    by_z = [
        jax.grad(lambda z, at=at, name=name: heads(at, z)[name])(trunk(at))
        for name, at in zip(TASKS, points, strict=True)
    ]
    products = np.array([[jnp.vdot(g, h) for h in by_z] for g in by_z])
    return samo_jax.fairgrad_weights(products, alpha=ALPHA)


def direction_of(weights, points):
    found = [
        gradients(unmarked, at)[name] for name, at in zip(TASKS, points, strict=True)
    ]
    shared = {
        leaf: sum(w * g[leaf] for w, g in zip(weights, found, strict=True))
        for leaf in ("first", "second")
    }
    return shared | {name: found[i][name] for i, name in enumerate(TASKS)}


@pytest.mark.parametrize("unroll", mostly_slow([None, False, 2], but={None}))
@pytest.mark.parametrize("name", mostly_slow(LOSSES, but={"unmarked", "in both"}))
def test_weights_and_direction(name, unroll):
    params = make_params()
    direction, state = update(multitask(unroll=unroll), LOSSES[name], params)
    weights = weights_at([params] * 3)
    np.testing.assert_allclose(state.weights, weights, rtol=1e-9)
    chex.assert_trees_all_close(
        direction, direction_of(weights, [params] * 3), rtol=1e-9
    )


def points_of(perturbation, params):
    """The tasks' points, which a weighting of one task each gives away."""
    grads = samo_jax.mean_value_and_grad(unmarked)(params)[1]
    problem = []

    def remember(context):
        problem.append(perturbation.shared_perturbations(context))
        return problem[-1]

    spy = perturbation._replace(shared_perturbations=remember)
    tx = samo_jax.multitask(
        samo_jax.mean(), spy, num_tasks=3, key=0, param_labels=LABELS
    )
    tx.update(grads, tx.init(params), params, loss_fn=unmarked)
    eps, index = problem[0]
    index = np.broadcast_to(index, 3)
    return [jax.tree.map(jnp.add, params, eps[i]) for i in index]


@pytest.mark.parametrize(
    "perturbation",
    mostly_slow([samo_jax.global_sam(0.3), SHARED_PROBE], but={SHARED_PROBE}),
    ids=["global", "two points"],
)
def test_at_shared_points(perturbation):
    params = make_params()
    direction, state = update(multitask(perturbation=perturbation), unmarked, params)
    points = points_of(perturbation, params)
    weights = weights_at(points)
    np.testing.assert_allclose(state.weights, weights, rtol=1e-6)
    chex.assert_trees_all_close(
        direction, direction_of(weights, points), rtol=1e-6, atol=1e-9
    )


def test_a_leaf_that_heads_use_directly_counts():
    """A tied embedding: its gradient has a part that does not go through z."""
    params = make_params() | {"tied": jnp.linspace(-1, 1, 6)}
    labels = LABELS | {"tied": "shared"}

    def tied(params):
        z = trunk(params) * params["tied"]
        return heads(params, samo_jax.representation(z) + params["tied"])

    direction, state = update(multitask(param_labels=labels), tied, params)
    by_both = [
        jax.grad(lambda z, t, name=name: heads(params, z + t)[name], (0, 1))(
            trunk(params) * params["tied"], params["tied"]
        )
        for name in TASKS
    ]
    rows = [np.concatenate([z.ravel(), t]) for z, t in by_both]
    weights = samo_jax.fairgrad_weights(np.array(rows) @ np.array(rows).T, alpha=ALPHA)
    np.testing.assert_allclose(state.weights, weights, rtol=1e-9)
    found = gradients(tied, params)
    wanted = sum(w * found[n]["tied"] for w, n in zip(weights, TASKS, strict=True))
    np.testing.assert_allclose(direction["tied"], wanted, rtol=1e-9)


def test_the_only_shared_leaf_gives_the_exact_step():
    params = {"z": jnp.arange(1.0, 4), "a": jnp.ones(3), "b": jnp.array([1.0, -2, 0])}
    labels = {"z": "shared", "a": "a", "b": "b"}

    def loss_fn(params):
        z = samo_jax.representation(params["z"])
        return {name: jnp.vdot(params[name], jnp.sin(z)) ** 2 for name in "ab"}

    kinds = ["parameters", "representation", {"z": True, "a": False, "b": False}]
    found = [
        update(
            multitask(num_tasks=2, param_labels=labels, gramian_of=kind),
            loss_fn,
            params,
        )
        for kind in kinds
    ]
    for other in found[1:]:
        chex.assert_trees_all_close(other, found[0], rtol=1e-9)


def test_one_task():
    def loss_fn(params):
        return [heads(params, samo_jax.representation(trunk(params)))["a"]]

    labels = LABELS | {"a": "0", "b": "frozen", "c": "frozen"}
    params = make_params()
    tx = multitask(samo_jax.upgrad(), num_tasks=1, param_labels=labels)
    direction, _ = update(tx, loss_fn, params)
    wanted = jax.grad(lambda params: loss_fn(params)[0])(params)
    chex.assert_trees_all_close(direction, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "perturbation", mostly_slow([None, SHARED_PROBE], but=1), ids=["one", "two"]
)
def test_a_mask_of_the_last_leaves(perturbation):
    params = make_params()
    mask = dict.fromkeys(params, False) | {"second": True, "a": True}
    tx = multitask(perturbation=perturbation, gramian_of=mask)
    direction, state = update(tx, unmarked, params)
    points = [params] * 3 if perturbation is None else points_of(perturbation, params)
    rows = [
        gradients(unmarked, at)[name]["second"].ravel()
        for name, at in zip(TASKS, points, strict=True)
    ]
    weights = samo_jax.fairgrad_weights(np.array(rows) @ np.array(rows).T, alpha=ALPHA)
    np.testing.assert_allclose(state.weights, weights, rtol=1e-6)
    chex.assert_trees_all_close(
        direction, direction_of(weights, points), rtol=1e-6, atol=1e-9
    )


def test_an_aggregator_combines_gradients_by_the_representation():
    params = make_params()
    direction, state = update(multitask(samo_jax.trimmed_mean(1)), unmarked, params)
    rows = [
        jax.grad(lambda z, name=name: heads(params, z)[name])(trunk(params))
        for name in TASKS
    ]
    _, pullback = jax.vjp(trunk, params)
    (wanted,) = pullback(jnp.median(jnp.stack(rows), 0))
    for leaf in ("first", "second"):
        np.testing.assert_allclose(direction[leaf], wanted[leaf], rtol=1e-9)
    own = gradients(unmarked, params)
    chex.assert_trees_all_close(direction["b"], own["b"]["b"], rtol=1e-9)
    np.testing.assert_allclose(state.weights, np.full(3, 1 / 3))


@pytest.mark.parametrize("gramian_of", ["representation", {"second": True}])
@pytest.mark.parametrize(
    "fault", mostly_slow(["loss", "gradient", "mask"], but={"gradient"})
)
def test_a_faulty_task_is_absent(fault, gramian_of):
    if gramian_of != "representation":
        gramian_of = dict.fromkeys(make_params(), False) | gramian_of
    params = make_params()

    def faulty(params):
        losses = marked(params)
        bad = {
            "loss": jnp.nan,
            "gradient": jnp.sqrt(jnp.sum(0 * params["b"] ** 2)),
            "mask": 0.0,
        }
        return losses | {"b": losses["b"] + bad[fault]}

    mask = {"task_mask": jnp.array([True, fault != "mask", True])}
    tx = multitask(gramian_of=gramian_of)
    direction, state = update(tx, faulty, params, **mask)
    others = multitask(
        gramian_of=gramian_of, num_tasks=2, param_labels=LABELS | {"b": "frozen"}
    )

    def of_others(params):
        losses = marked(params)
        return {"a": losses["a"], "c": losses["c"]}

    wanted, of_two = update(others, of_others, params)
    chex.assert_trees_all_close(direction, wanted, rtol=1e-9)
    np.testing.assert_allclose(state.weights[jnp.array([0, 2])], of_two.weights)
    assert state.skipped.tolist() == [0, 1, 0]


@pytest.mark.slow
def test_complex_features():
    params = {"w": jnp.array([0.3, -0.7]), "a": jnp.ones(2), "b": jnp.arange(2.0)}
    labels = {"w": "shared", "a": "a", "b": "b"}

    def loss_fn(params):
        z = jnp.fft.fft(params["w"])
        return {n: jnp.sum(jnp.abs(z * params[n] - 1j) ** 2) for n in ("a", "b")}

    tx = multitask(num_tasks=2, param_labels=labels)
    direction, state = update(tx, loss_fn, params)
    found = [
        jax.grad(lambda params, n=n: loss_fn(params)[n])(params)["w"]
        for n in ("a", "b")
    ]
    np.testing.assert_allclose(
        direction["w"], state.weights @ jnp.stack(found), rtol=1e-9
    )


@pytest.mark.parametrize("with_axis", mostly_slow([True, False], but=1))
def test_sharded_batches(with_axis):
    params = make_params()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def loss_on(x, y):
        return lambda params: heads(
            params, samo_jax.representation(trunk(params, x)), y
        )

    expected = update(multitask(), loss_on(X, Y), params)
    if not with_axis:
        spec = jax.NamedSharding(mesh, P("data"))
        x, y = (jax.device_put(a, spec) for a in (X, Y))
        found = update(multitask(), loss_on(x, y), params)
    else:
        tx = multitask(axis_name="data")

        @jax.jit
        @jax.shard_map(mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P())
        def step(x, y):
            loss_fn = loss_on(x, y)
            return tx.update(params, tx.init(params), params, loss_fn=loss_fn)

        found = step(X, Y)
    chex.assert_trees_all_close(found[0], expected[0], rtol=1e-9)
    np.testing.assert_allclose(found[1].weights, expected[1].weights, rtol=1e-9)


def test_in_a_scan_with_diagnostics():
    params = make_params()
    tx = multitask(perturbation=samo_jax.global_sam(0.1), diagnostics=True)

    def step(carry, _):
        params, state = carry
        grads = samo_jax.mean_value_and_grad(marked)(params)[1]
        direction, state = tx.update(grads, state, params, loss_fn=marked)
        params = jax.tree.map(lambda p, d: p - 0.05 * d, params, direction)
        return (params, state), state.diagnostics.losses

    (_, state), losses = jax.lax.scan(step, (params, tx.init(params)), length=40)
    assert jnp.all(losses[-1] < losses[0])
    assert jnp.all(jnp.diagonal(state.diagnostics.gramian) > 0)


def test_one_pass_through_the_trunk():
    """Below a trunk of most operations, heads cost little."""
    wide = make_params() | {
        "first": jnp.ones((5, 200)),
        "second": jnp.ones((200, 6)) / 200,
    }
    tx = multitask(samo_jax.mgda())

    def step(params):
        return tx.update(params, tx.init(params), params, loss_fn=unmarked)[0]

    def plain(params):
        return samo_jax.mean_value_and_grad(unmarked)(params)[1]

    assert flops(step, wide) < 1.3 * flops(plain, wide)
    everything = multitask(samo_jax.mgda(), gramian_of="parameters")

    def exact(params):
        found = everything.update(
            params, everything.init(params), params, loss_fn=unmarked
        )
        return found[0]

    assert flops(exact, wide) > 1.5 * flops(plain, wide)
