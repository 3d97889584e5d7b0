"""The local part from memory, and adaptive alpha, by hand in float64."""

import functools

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import samo_jax

from sharpness import (
    SHARED,
    TASKS,
    add,
    descend,
    descend_by_hand,
    gradients,
    initial_params,
    inner_product,
    keep,
    multitask,
    norm,
    norm_groups,
    perturb,
    scale,
)
from tiers import mostly_slow

pytestmark = pytest.mark.usefixtures("x64")

RHO, DECAY, RIDGE = 0.3, 0.9, 1e-3
assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-9, atol=1e-11)


def normalized(_params, p):
    length = norm(p)
    return scale(p, RHO / length if length else 0.0)


def layerwise(local, g0):
    """Every shared leaf gets the norm of g0's; heads are g0's."""
    result = dict(g0)
    for name in SHARED:
        length = np.linalg.norm(local[name])
        factor = np.linalg.norm(g0[name]) / length if length else 0.0
        result[name] = factor * local[name]
    return result


def cosine(one, other):
    one, other = keep(one, SHARED), keep(other, SHARED)
    lengths = norm(one) * norm(other)
    return inner_product(one, other) / lengths if lengths else 0.0


class Adaptive:
    """Least squares: which a g0 + b lhat has been closest to g?"""

    def __init__(self):
        self.matrix, self.right = np.zeros((2, 2)), np.zeros(2)

    def coefficients(self):
        if not self.right.any():
            return 1.0, 0.0
        return np.linalg.solve(
            self.matrix + RIDGE * np.diag(np.diag(self.matrix)), self.right
        )

    def observe(self, g0, lhat, g):
        vectors = [keep(x, SHARED) for x in (g0, lhat)]
        units = [scale(x, 1 / norm(x) if norm(x) else 0.0) for x in vectors]
        target = scale(keep(g, SHARED), 1 / norm(keep(g, SHARED)))
        between = inner_product(*units)
        right = [inner_product(unit, target) for unit in units]
        self.matrix += DECAY**-self.steps * np.array([[1, between], [between, 1]])
        self.right += DECAY**-self.steps * np.array(right)
        self.steps += 1

    steps = 0


def memory_by_hand(alpha, decay, clean_pass, local=None):
    zero = scale({n: np.asarray(w) for n, w in initial_params("float64").items()}, 0.0)
    memory = [zero] * 3
    rules = [Adaptive() for _ in TASKS]

    def direction(params, data):
        nonlocal memory
        clean = gradients(params, data)
        kept = clean if local == "local" else memory
        g0 = scale(add(*(clean if clean_pass else kept)), 1 / 3)
        rows = []
        for i, head in enumerate(TASKS):
            lhat = layerwise(kept[i], g0)
            a, b = (
                rules[i].coefficients() if alpha == "adaptive" else (alpha, 1 - alpha)
            )
            p = add(scale(g0, a), scale(lhat, b))
            eps = perturb(normalized, params, p, norm_groups("separate", head))
            rows.append(gradients(add(params, eps), data)[i])
            if alpha == "adaptive":
                rules[i].observe(g0, lhat, rows[i])
        memory = [
            add(scale(m, decay), scale(row, 1 - decay))
            for m, row in zip(memory, rows, strict=True)
        ]
        d = scale(add(*rows), 1 / 3)
        return d | {name: rows[i][name] for i, name in enumerate(TASKS)}

    return direction


@pytest.mark.slow
@pytest.mark.parametrize("clean_pass", mostly_slow([True, False], but={True}))
@pytest.mark.parametrize("decay", mostly_slow([0.0, 0.6], but={0.6}))
@pytest.mark.parametrize("alpha", mostly_slow([0.5, 0.2, "adaptive"], but={"adaptive"}))
def test_memory_sam(alpha, decay, clean_pass):
    perturbation = samo_jax.memory_sam(RHO, alpha, decay=decay, clean_pass=clean_pass)
    assert_close(
        descend(multitask(perturbation, key=None, unroll=False), "float64"),
        descend_by_hand(memory_by_hand(alpha, decay, clean_pass)),
    )


@pytest.mark.parametrize("alpha", mostly_slow([0.3, "adaptive"], but=1))
def test_exact_local_part(alpha):
    perturbation = samo_jax.joint_sam(RHO, alpha, local="local")
    assert_close(
        descend(multitask(perturbation, key=None), "float64"),
        descend_by_hand(memory_by_hand(alpha, 0.0, True, "local")),
    )


@pytest.mark.parametrize("alpha", [0.3, "adaptive"])
def test_a_local_part_with_its_own_loss(alpha):
    """It is given the context that the local part has prepared."""
    local = samo_jax.local_sam()

    def double(problem, context, point, i):
        (_, own_context), name = context, problem.tasks[i]
        return 2 * own_context.loss_fn(point)[name]

    doubled, single = (
        descend(
            multitask(samo_jax.joint_sam(RHO, alpha, local=part)), "float64", steps=1
        )
        for part in (local._replace(loss=double), local)
    )
    assert_close(doubled, [scale(direction, 2) for direction in single])


def test_incoming_updates_are_not_looked_at_without_the_clean_pass():
    tx = samo_jax.multitask(
        samo_jax.mgda(), samo_jax.memory_sam(RHO, clean_pass=False), num_tasks=2
    )
    losses = lambda w: [jnp.sum(w**2), jnp.sum((w - 1) ** 4)]  # noqa: E731
    w = jnp.array([1.0, 3.0])
    _, state = tx.update(w, tx.init(w), w, loss_fn=losses)
    one, other = (tx.update(x, state, w, loss_fn=losses)[0] for x in (w, -3 * w))
    chex.assert_trees_all_equal(one, other)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_memory_has_the_chosen_dtype(dtype):
    perturbation = samo_jax.memory_sam(dtype=dtype)
    params = initial_params("float32")
    memory = perturbation.init(params, 3)
    for name, leaf in memory.items():
        assert leaf.shape == (3, *params[name].shape)
        assert leaf.dtype == (dtype or "float32")


def joint_direction_after(steps, losses, size, local):
    """eps_i / rho of each task at the last of some steps without descent."""
    perturbation = samo_jax.joint_sam(1.0, "adaptive", local=local)
    seen = []

    def recording(context, i):
        eps = perturbation.perturb(context, i)
        seen.append(np.asarray(eps))
        return eps

    tx = samo_jax.multitask(
        samo_jax.mean(),
        perturbation._replace(perturb=recording),
        num_tasks=2,
        key=0,
    )
    w = jnp.zeros(size)
    state = tx.init(w)
    g0 = samo_jax.mean_value_and_grad(losses)(w)[1]
    for _ in range(steps):
        _, state = tx.update(g0, state, w, loss_fn=losses)
    return np.asarray(g0), seen[-2:]


def opposed(size):
    slope = jnp.ones(size) / size**0.5
    other = jnp.eye(size)[0]
    return lambda w: [3 * slope @ w, -(slope @ w) + 0.1 * other @ w]


@pytest.mark.slow
def test_adaptive_alpha_looks_away_from_the_mean_where_a_task_conflicts():
    g0, (first, second) = joint_direction_after(3, opposed(8), 8, "local")
    unit = g0 / np.linalg.norm(g0)
    assert first @ unit > 0.99
    assert second @ unit < -0.9


@pytest.mark.slow
def test_adaptive_alpha_leaves_an_unreliable_estimate_out():
    """Of a random direction in 4000 dimensions little remains."""
    control = samo_jax.probe(sign="random")
    g0, (first, _) = joint_direction_after(30, opposed(4000), 4000, control)
    assert first @ g0 / np.linalg.norm(g0) > 0.99
