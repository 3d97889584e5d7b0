"""Forward-only local directions, against the points they were seen to probe."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samo_jax
from samo_jax import Problem, probe

from sharpness import (
    LABELS,
    SHARED,
    TASKS,
    add,
    batch,
    descend,
    initial_params,
    multitask,
    norm,
    scale,
    task_losses,
)
from tiers import mostly_slow

pytestmark = pytest.mark.usefixtures("x64")

assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-9, atol=1e-11)


def problem_at(params, probe_loss_fn, step=0):
    return Problem(
        loss_fn=probe_loss_fn,
        probe_loss_fn=probe_loss_fn,
        sample_loss_fns=(),
        params=params,
        mean_grad=jax.tree.map(lambda leaf: leaf + 1, params),
        labels=LABELS,
        tasks=TASKS,
        step=jnp.asarray(step),
        key=jax.random.key(7),
        extra_args={},
        unroll=True,
    )


def watch(direction, step=0):
    """The K directions, and for each forward pass (theta' - theta, losses)."""
    params, data, passes = initial_params("float64"), batch(0, "float64"), []

    def probe_loss_fn(p):
        losses = task_losses(p, data)
        away = {n: np.asarray(p[n] - params[n]) for n in p}
        passes.append((away, np.array([losses[name] for name in TASKS])))
        return losses

    problem = problem_at(params, probe_loss_fn, step)
    context = direction.prepare(problem, ())
    found = [direction.perturb(context, i) for i in range(len(TASKS))]
    return problem, found, passes


def check_directions(problem, found, probes_of, names=SHARED):
    """`probes_of[i]` lists task i's (c, displacement)."""
    for ghat, probes in zip(found, probes_of, strict=True):
        expected = add(*(scale(z, c) for c, z in probes))
        for name, leaf in problem.mean_grad.items():
            if name not in names:
                np.testing.assert_array_equal(ghat[name], leaf)
        expected = {name: expected[name] for name in names}
        actual = {name: np.asarray(ghat[name]) for name in names}
        assert_close(
            scale(actual, 1 / norm(actual)), scale(expected, 1 / norm(expected))
        )


@pytest.mark.parametrize("unit", mostly_slow([False, True], but={False}))
@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
@pytest.mark.parametrize("num_probes", mostly_slow([1, 3], but={3}))
def test_antithetic_probes_of_each_task(num_probes, distribution, unit):
    direction = probe(
        lambda step: 0.1 / (1 + step),
        num_probes=num_probes,
        distribution=distribution,
        unit=unit,
    )
    problem, found, passes = watch(direction, step=1)
    assert len(passes) == 2 * num_probes * len(TASKS)
    pairs = list(zip(passes[::2], passes[1::2], strict=True))
    lengths = [norm(ahead) for (ahead, _), _ in pairs]
    for (ahead, _), (behind, _) in pairs:
        assert_close(ahead, scale(behind, -1))
        assert not any(ahead[name].any() for name in TASKS)
        if distribution == "rademacher":
            assert np.ptp(np.abs(ahead["kernel"])) < 1e-12
    assert len({ahead["kernel"].tobytes() for (ahead, _), _ in pairs}) == len(pairs)
    if unit:
        np.testing.assert_allclose(lengths, 0.05, rtol=1e-9)
    probes_of = [
        [
            (up[i] - down[i], ahead)
            for (ahead, up), (_, down) in pairs[i * num_probes : (i + 1) * num_probes]
        ]
        for i in range(len(TASKS))
    ]
    check_directions(problem, found, probes_of)


def test_one_sided_shared_probes():
    problem, found, passes = watch(
        probe(0.01, num_probes=4, shared=True, antithetic=False)
    )
    (at_theta, clean), *ahead = passes
    assert len(ahead) == 4
    assert norm(at_theta) == 0
    probes_of = [
        [(losses[i] - clean[i], z) for z, losses in ahead] for i in range(len(TASKS))
    ]
    check_directions(problem, found, probes_of)


def test_mask_leaves_the_global_gradient_elsewhere():
    problem, found, passes = watch(
        probe(0.01, mask=dict.fromkeys(LABELS, True) | {"kernel": False})
    )
    assert not any(away["kernel"].any() for away, _ in passes)
    probes_of = [
        [(passes[2 * i][1][i] - passes[2 * i + 1][1][i], passes[2 * i][0])]
        for i in range(len(TASKS))
    ]
    check_directions(problem, found, probes_of, ("bias",))


@pytest.mark.slow
def test_more_probes_see_more():
    """cos^2 is about n / P for n probes of P parameters."""
    params = jnp.zeros(200)
    slope = jax.random.normal(jax.random.key(1), (200,))

    def cosine(key, num_probes):
        problem = problem_at(params, lambda p: [slope @ p])._replace(
            labels="shared", tasks=("0",), key=key
        )
        direction = probe(num_probes=num_probes)
        ghat = direction.perturb(direction.prepare(problem, ()), 0)
        return ghat @ slope / jnp.linalg.norm(ghat) / jnp.linalg.norm(slope)

    for num_probes in (1, 8):
        keys = jax.random.split(jax.random.key(0), 200)
        cosines = jax.vmap(cosine, (0, None))(keys, num_probes)
        assert np.mean(cosines**2) == pytest.approx(num_probes / 200, rel=0.2)
        assert np.min(cosines) > 0


def test_random_sign_is_right_half_of_the_time_and_runs_no_pass():
    """The control: the probe's length, without its information."""
    right = []
    for step in range(40):
        problem, found, passes = watch(probe(sign="random"), step)
        assert passes == []
        key = jax.random.fold_in(jax.random.key(7), step)
        control = probe(sign="random")
        problem = problem._replace(key=key)
        found = control.perturb(control.prepare(problem, ()), 0)
        slope = jax.grad(lambda p: task_losses(p, batch(0, "float64"))["left"])(
            problem.params
        )
        right.append(sum(np.sum(found[name] * slope[name]) for name in SHARED) > 0)
    assert 10 < sum(right) < 30


@pytest.mark.slow
@pytest.mark.parametrize("unroll", [True, False, 2])
@pytest.mark.parametrize(
    "combiner",
    [samo_jax.fairgrad(), samo_jax.mean()],
    ids=["fairgrad", "mean"],
)
def test_two_points_are_the_shared_probe(combiner, unroll):
    two_points = samo_jax.joint_sam(0.3, local=probe(shared=True))
    one_by_one = two_points._replace(shared_perturbations=None)
    assert_close(
        descend(multitask(two_points, combiner, unroll=unroll), "float64"),
        descend(multitask(one_by_one, combiner), "float64"),
    )


def test_both_points_are_used():
    data = batch(0, "float64")
    problem = problem_at(initial_params("float64"), lambda p: task_losses(p, data))
    signs = set()
    for seed in range(6):
        local = probe(shared=True)
        context = local.prepare(problem._replace(key=jax.random.key(seed)), ())
        (plus, minus), index = local.shared_perturbations(context)
        for name in SHARED:
            np.testing.assert_array_equal(plus[name], -minus[name])
        signs.add(tuple(index.tolist()))
    assert len(signs) > 2


@pytest.mark.parametrize("difference", [0.0, np.nan])
def test_no_difference_is_no_local_part(difference):
    """Then the perturbation is global SAM's."""
    params = {"kernel": jnp.ones(3), "left": jnp.ones(2)}
    problem = problem_at(params, lambda p: [0 * p["kernel"].sum() + difference])
    problem = problem._replace(
        labels={"kernel": "shared", "left": "left"}, tasks=("left",)
    )
    joint, along_mean = samo_jax.joint_sam(0.3), samo_jax.global_sam(0.3)
    actual = joint.perturb(joint.prepare(problem, ()), 0)
    assert_close(actual, along_mean.perturb(along_mean.prepare(problem, ()), 0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: probe(0.0), "`mu` must be positive and finite, got 0.0"),
        (lambda: probe(num_probes=0), "`num_probes` must be a positive int, got 0"),
        (
            lambda: probe(distribution="cauchy"),
            r"`distribution` must be one of \('normal', 'rademacher'\), got 'cauchy'",
        ),
        (
            lambda: probe(sign="right"),
            r"`sign` must be one of \('estimated', 'random'\), got 'right'",
        ),
        (
            lambda: samo_jax.joint_sam(mu=0.1, local=probe()),
            r"`mu` is the step of the default probe, got 0.1 beside `local`",
        ),
        (
            lambda: samo_jax.joint_sam(local="both"),
            "`direction` must be",
        ),
        (
            lambda: samo_jax.samo(samo_jax.mean(), num_tasks=2, local=probe()),
            "`key` is required",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
