"""Every quantity recorded from the official implementation of SAMO is reproduced."""

import re

import jax
import numpy as np
import optax
import pytest

import samo_jax

from golden_steps import FILES, TOLERANCE, Golden, relative_error
from tiers import mostly_slow


@pytest.fixture(params=mostly_slow(["float64", "float32"], but=1))
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture(params=mostly_slow(FILES, but={"samo_step_k3"}))
def golden(request, dtype):
    return Golden(request.param, dtype)


def test_every_quantity(golden):
    """Clean pass, probes, perturbations, gradients there, Gramian, weights, d."""
    computed, recorded = golden.computed(), golden.recorded()
    assert computed.keys() == recorded.keys()
    for name, expected in recorded.items():
        assert relative_error(computed[name], expected) <= golden.tolerance(name), name


def test_mgda_is_at_least_as_good_as_the_recorded_optimum(golden):
    gramian, recorded = golden["gramian"], golden["weights/mgda_exact"]
    weights = np.asarray(samo_jax.mgda_weights(gramian), np.float64)
    value, recorded_value = (w @ gramian @ w for w in (weights, recorded))
    assert value <= recorded_value * (
        1 + 1e-12 if golden.dtype == "float64" else 1 + 1e-6
    )


def numpy_global_step(golden, solve):
    """One step with alpha = 1 in NumPy, gradients by hand-written backpropagation."""
    f = {name: np.asarray(golden[name], np.float64) for name in golden.arrays}
    x, y, num_tasks, rho = f["x"], f["y"], golden.num_tasks, float(f["rho"])
    params = {k.removeprefix("params/"): v for k, v in f.items() if "params/" in k}

    def task_grad(params, i):
        a = np.tanh(x @ params["shared.l0.kernel"] + params["shared.l0.bias"])
        b = np.tanh(a @ params["shared.l1.kernel"] + params["shared.l1.bias"])
        out = (b @ params[f"head{i}.kernel"] + params[f"head{i}.bias"])[:, 0]
        d_out = (2 / len(x) * (out - y[:, i]))[:, None]
        d_b = d_out @ params[f"head{i}.kernel"].T * (1 - b**2)
        d_a = d_b @ params["shared.l1.kernel"].T * (1 - a**2)
        return {
            "shared.l0.kernel": x.T @ d_a,
            "shared.l0.bias": d_a.sum(0),
            "shared.l1.kernel": a.T @ d_b,
            "shared.l1.bias": d_b.sum(0),
            f"head{i}.kernel": b.T @ d_out,
            f"head{i}.bias": d_out.sum(0),
        }

    clean = [task_grad(params, i) for i in range(num_tasks)]
    mean_grad = {
        name: sum(grad.get(name, 0) for grad in clean) / num_tasks for name in params
    }
    groups = {name: name.split(".")[0] for name in params}
    norms = {
        group: np.sqrt(
            sum(np.sum(mean_grad[n] ** 2) for n in params if groups[n] == group)
        )
        for group in groups.values()
    }
    point = {n: params[n] + rho * mean_grad[n] / norms[groups[n]] for n in params}
    grads = [task_grad(point, i) for i in range(num_tasks)]
    shared = [name for name in params if name.startswith("shared")]
    jacobian = np.stack([np.concatenate([g[n].ravel() for n in shared]) for g in grads])
    weights = solve(jacobian @ jacobian.T)
    direction = {
        n: sum(w * g[n] for w, g in zip(weights, grads, strict=True)) for n in shared
    }
    heads = {
        n: grads[int(re.findall(r"\d+", n)[0])][n] for n in params if n not in shared
    }
    return weights, direction | heads


def scipy_fairgrad(alpha):
    """The alpha-fair equation by SciPy, in logarithms so that it converges."""
    from scipy.optimize import root

    def solve(gramian):
        def equation(log_w):
            return np.log(gramian @ np.exp(log_w)) + log_w / alpha

        solution = root(equation, -np.log(np.diag(gramian)) / 2, tol=1e-13)
        assert np.max(np.abs(solution.fun)) < 1e-12
        return np.exp(solution.x)

    return solve


COMBINERS = {
    "mean": (samo_jax.mean(), lambda g: np.full(len(g), 1 / len(g))),
    "fairgrad": (samo_jax.fairgrad(2.0), scipy_fairgrad(2.0)),
}


@pytest.mark.parametrize("combiner", COMBINERS)
def test_whole_transformation(golden, combiner):
    """With alpha = 1 against NumPy, heads included."""
    combiner, numpy_solver = COMBINERS[combiner]
    tx = samo_jax.samo(
        combiner,
        golden.hyperparameters["rho"],
        alpha=1.0,
        num_tasks=golden.num_tasks,
        key=0,
        param_labels=lambda params: {n: n.removeprefix("head") for n in params},
    )

    @jax.jit
    def step(params):
        _, grads = samo_jax.mean_value_and_grad(golden.losses)(params)
        return tx.update(grads, tx.init(params), params, loss_fn=golden.losses)

    weights, expected = numpy_global_step(golden, numpy_solver)
    direction, state = step(golden.params)
    tolerance = TOLERANCE[golden.dtype]
    found = optax.tree.get(state, "weights")
    assert relative_error(found, weights) <= tolerance
    for name, leaves in direction.items():
        for leaf, value in leaves.items():
            assert relative_error(value, expected[f"{name}.{leaf}"]) <= tolerance
