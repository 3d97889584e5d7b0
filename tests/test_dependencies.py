"""What is known of a program before it runs: by what an output has a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from samo_jax._jaxprs import Use, dependencies

NO, MAYBE, LIKELY, CERTAIN = Use
BATCH = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
MASK = jnp.array([1.0, 1.0, 0.0, 0.0])
A = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)), jnp.float32)
B = jnp.asarray(np.random.default_rng(2).normal(size=(3, 3)), jnp.float32)
ROUND = jax.custom_jvp(lambda x: jnp.round(x))
ROUND.defjvp(lambda x, t: (jnp.round(*x), *t))
CLIP = jax.custom_vjp(lambda x: x)
CLIP.defvjp(lambda x: (x, None), lambda _, ct: (jnp.clip(ct, -1, 1),))


def host(x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(np.asarray, shape, x, vmap_method="sequential")


def referred(x):
    ref = jax.new_ref(x)
    return ref[...]


def rolled(a, b):
    """Of which one carried value goes to the next in every turn."""

    def turn(c, _):
        return (c[0], c[0] * 1.5, c[1], c[2] + b, c[3]), None

    zeros = [jnp.zeros(())] * 4
    return lax.scan(turn, (a, *zeros), None, length=9)[0][-1]


# Of two inputs, which go as scalars or as 3 x 3 matrices.
SCALARS = {
    "sum": (lambda a, b: a + 2 * b, [CERTAIN, CERTAIN]),
    "one alone": (lambda a, _: jnp.sin(a), [CERTAIN, NO]),
    "neither": (lambda *_: 1.0, [NO, NO]),
    "power": (lambda a, b: a**3 / b, [CERTAIN, CERTAIN]),
    "cut": (lambda a, b: lax.stop_gradient(a) * b, [NO, LIKELY]),
    "straight through": (lambda a, b: a + lax.stop_gradient(b - a), [CERTAIN, NO]),
    "steps": (lambda a, b: jnp.floor(a) + jnp.sign(b), [NO, NO]),
    "integers": (lambda a, b: a.astype(int) * 1.0 + (b > 0), [NO, NO]),
    "a mask": (lambda a, b: jnp.where(a > 0, b, 0.0), [NO, LIKELY]),
    "a case": (lambda a, b: jnp.where(a > 0, a, 2 * a + b), [CERTAIN, LIKELY]),
    "a factor of the batch": (lambda a, b: a * MASK[3] + b * 3.0, [LIKELY, CERTAIN]),
    "a factor of constants": (
        lambda a, b: a * (jnp.ones(3) * jnp.full(3, 2.0))[0] + b,
        [CERTAIN, CERTAIN],
    ),
    "a branch": (
        lambda a, b: lax.cond(a > 0, lambda: a * b, lambda: jnp.sin(b)),
        [LIKELY, CERTAIN],
    ),
    "calls": (
        lambda a, b: jax.jit(jax.checkpoint(lambda a, b: jnp.cos(a) * b))(a, b),
        [CERTAIN, CERTAIN],
    ),
    "a call that is given one twice": (
        lambda a, _: jax.jit(jnp.multiply)(a, a),
        [CERTAIN, NO],
    ),
    "relu": (lambda a, b: jax.nn.relu(a) + jax.nn.softplus(b), [CERTAIN, CERTAIN]),
    "an own derivative": (lambda a, b: ROUND(a) + CLIP(b), [LIKELY, LIKELY]),
    "a callback": (lambda a, b: host(a) + b, [MAYBE, CERTAIN]),
    "a reference": (lambda a, _: referred(a) * 1.0, [MAYBE, MAYBE]),
    "printed": (lambda a, b: (jax.debug.print("{}", b), a)[1], [CERTAIN, NO]),
    "a long way through a loop": (rolled, [LIKELY, CERTAIN]),
    "an empty loop": (
        lambda a, b: lax.scan(lambda c, _: (c * b, None), a, None, length=0)[0],
        [CERTAIN, NO],
    ),
    "while": (
        lambda a, b: lax.while_loop(lambda c: c < 1, lambda c: c + b**2, a),
        [LIKELY, LIKELY],
    ),
}
MATRICES = {
    "layers": (lambda a, b: jnp.mean(jnp.tanh(BATCH @ a) @ b), [CERTAIN, CERTAIN]),
    "masked by the batch": (
        lambda a, b: jnp.mean(MASK[:, None] * (BATCH @ a)) + MASK @ (BATCH @ b[0]),
        [CERTAIN, CERTAIN],
    ),
    "masks that exclude each other": (
        lambda a, b: jnp.mean(
            MASK[:, None]
            * (MASK[:, None] * (BATCH @ a) + MASK[::-1, None] * (BATCH @ b))
        ),
        [LIKELY, LIKELY],
    ),
    "one of their rows": (
        lambda a, b: jnp.sum((MASK[:, None] * (BATCH @ a))[2] * b),
        [LIKELY, LIKELY],
    ),
    "rows": (lambda a, b: jnp.sum(a[0] * b[jnp.array([1, 2])]), [CERTAIN, CERTAIN]),
    "joined and cut": (
        lambda a, b: jnp.sum(jnp.split(2 * jnp.stack([a, b]), 2)[1]),
        [NO, CERTAIN],
    ),
    "joined side by side": (
        lambda a, b: jnp.sum(jnp.concatenate([a, b], axis=1)[:, 4:]),
        [NO, CERTAIN],
    ),
    "joined and mixed": (
        lambda a, b: jnp.sum(jnp.concatenate([a, b]).T[:, 0]),
        [LIKELY, LIKELY],
    ),
    "pasted": (lambda a, b: jnp.sum(a.at[0].set(b[0])[0]), [LIKELY, LIKELY]),
    "a recurrent network": (
        lambda a, b: jnp.sum(
            lax.scan(lambda h, x: (jnp.tanh(h @ b + x @ a), h), jnp.zeros(3), BATCH)[0]
        ),
        [CERTAIN, CERTAIN],
    ),
    "rows of a loop": (
        lambda a, b: jnp.sum(lax.map(lambda row: jnp.exp(row), a)) * jnp.sum(b),
        [CERTAIN, CERTAIN],
    ),
    "normalised": (
        lambda a, b: jnp.sum(jax.nn.standardize(BATCH @ a) * jax.nn.softmax(b)[:1]),
        [CERTAIN, CERTAIN],
    ),
    "decomposed": (
        lambda a, _: jnp.sum(jnp.linalg.cholesky(a @ a.T + jnp.eye(3))),
        [LIKELY, NO],
    ),
    "convolved": (
        lambda a, b: jnp.sum(jnp.convolve(jnp.convolve(BATCH[0], a[0]), b[0])),
        [CERTAIN, CERTAIN],
    ),
}
CASES = {name: (*case, (A[0, 0], B[0, 0])) for name, case in SCALARS.items()}
CASES |= {name: (*case, (A, B)) for name, case in MATRICES.items()}
NOT_DIFFERENTIABLE = {"a callback", "while"}


@pytest.mark.parametrize("case", CASES)
def test_dependencies(case):
    """Where there is none the gradient is zero; where there certainly is one, not."""
    fn, uses, inputs = CASES[case]
    (found,) = dependencies(jax.make_jaxpr(fn)(*inputs))
    assert [found.use(i) for i in range(2)] == uses
    assert found.is_constant() == (uses == [NO, NO])
    if case in NOT_DIFFERENTIABLE:
        return
    for use, gradient in zip(uses, jax.grad(fn, (0, 1))(*inputs), strict=True):
        assert not (use == NO and np.any(gradient))
        assert not (use == CERTAIN and not np.any(gradient))


@pytest.mark.parametrize(
    "joined",
    [jnp.stack, jnp.array, lambda losses: jax.jit(jnp.stack)(losses) * 2.0 + MASK[:2]],
    ids=["stack", "array", "in a call, scaled"],
)
def test_entries_of_a_vector_are_told_apart(joined):
    program = jax.make_jaxpr(lambda a, b: joined([a * 2, a + b]))(1.0, 2.0)
    uses = [[loss.use(i) for i in range(2)] for loss in dependencies(program)]
    assert uses == [[CERTAIN, NO], [CERTAIN, CERTAIN]]


def test_axes_of_devices_hide_nothing():
    mesh = jax.make_mesh((1,), ("data",))
    spec = jax.sharding.PartitionSpec()

    def loss(a, b):
        return lax.pmean(jnp.sum(a @ b), "data")

    shard = jax.shard_map(loss, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    (found,) = dependencies(jax.make_jaxpr(lambda a, _: shard(a, 2 * a))(A, B))
    assert [found.use(0), found.use(1)] == [CERTAIN, NO]


def test_programs_within_programs_take_the_time_of_one_pass():
    """Each of 40 calls holds the next one twice: 2^40 if they were written out."""
    fn = jnp.sin
    for _ in range(40):
        fn = jax.jit(lambda x, fn=fn: fn(x) + fn(x))
    (found,) = dependencies(jax.make_jaxpr(fn)(1.0))
    assert found.use(0) == CERTAIN
