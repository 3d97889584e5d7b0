"""Every quantity recorded from the official implementation of SAMO is reproduced."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samo_jax

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


class Golden:
    """One recorded step, its parameters nested as {"shared", "head0", ...}."""

    def __init__(self, file, dtype):
        arrays = np.load(GOLDEN / f"{file}.npz")
        self.arrays = {name: arrays[name] for name in arrays.files}
        self.dtype = dtype
        self.num_tasks = int(self["num_tasks"])
        self.hyperparameters = {name: float(self[name]) for name in ("rho", "alpha")}
        self.mu = float(self["mu"])
        self.params = self.tree("params")
        self.shared = self.params["shared"]

    def __getitem__(self, name):
        return self.arrays[name]

    def array(self, name):
        return jnp.asarray(self[name], self.dtype)

    def tree(self, prefix):
        """`prefix/shared.l0.kernel` becomes tree["shared"]["l0.kernel"]."""
        tree = {}
        for name in self.arrays:
            if name.startswith(prefix + "/"):
                group, leaf = name.removeprefix(prefix + "/").split(".", 1)
                tree.setdefault(group, {})[leaf] = self.array(name)
        return tree

    def losses(self, params):
        def dense(layer, inputs):
            shared = params["shared"]
            return jnp.tanh(
                inputs @ shared[f"{layer}.kernel"] + shared[f"{layer}.bias"]
            )

        features = dense("l1", dense("l0", self.array("x")))
        targets = self.array("y")
        outputs = [
            (features @ params[f"head{i}"]["kernel"] + params[f"head{i}"]["bias"])[:, 0]
            for i in range(self.num_tasks)
        ]
        return [
            jnp.mean((output - targets[:, i]) ** 2) for i, output in enumerate(outputs)
        ]

    def task_loss(self, i):
        return lambda params: self.losses(params)[i]

    def check(self, actual, expected):
        """Relative to the largest entry of each array."""
        rtol = TOLERANCE[np.dtype(self.dtype).name]
        for a, e in zip(
            jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
        ):
            scale = np.max(np.abs(e))
            np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * scale)


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture(params=["samo_step_k2", "samo_step_k3", "samo_step_k11"])
def golden(request, dtype):
    return Golden(request.param, dtype)


def test_clean_pass(golden):
    losses, mean_grad = samo_jax.mean_value_and_grad(golden.losses)(golden.params)
    golden.check(jnp.stack(losses), golden["losses"])
    golden.check(mean_grad, golden.tree("mean_grad"))


def test_probes(golden):
    """Central differences, and the estimates left after layer-wise normalisation."""
    mean_grad = golden.tree("mean_grad")["shared"]
    for i in range(golden.num_tasks):
        direction = golden.tree(f"task{i}/direction")["shared"]
        difference = samo_jax.directional_difference(
            lambda shared, i=i: golden.task_loss(i)(
                {**golden.params, "shared": shared}
            ),
            golden.shared,
            direction,
            mu=golden.mu,
        )
        recorded = golden[f"task{i}/spsa_scalar"]
        # In float32 a difference of two losses keeps their rounding, over 2 mu.
        rounding = np.max(golden["losses"]) * np.finfo(golden.dtype).eps / golden.mu
        rtol = TOLERANCE[golden.dtype]
        np.testing.assert_allclose(difference, recorded, rtol=rtol, atol=rounding)
        estimate = jax.tree.map(lambda z, c=difference: jnp.sign(c) * z, direction)
        golden.check(
            samo_jax.layerwise_normalize(estimate, mean_grad),
            golden.tree(f"task{i}/local")["shared"],
        )


def test_perturbations(golden):
    mean_grad = golden.tree("mean_grad")
    for i in range(golden.num_tasks):
        recorded = golden.tree(f"task{i}/perturbation")
        scalar = golden[f"task{i}/spsa_scalar"]
        direction = golden.tree(f"task{i}/direction")["shared"]
        local = jax.tree.map(lambda z, c=scalar: (c * z).astype(z.dtype), direction)
        shared = samo_jax.joint_perturbation(
            mean_grad["shared"], local, **golden.hyperparameters
        )
        golden.check(shared, recorded["shared"])
        head = f"head{i}"
        golden.check(
            samo_jax.scale_to_radius(mean_grad[head], golden.hyperparameters["rho"]),
            recorded[head],
        )


def perturbed_task_gradients(golden):
    """Gradients at the recorded perturbed points, like `task_gradients`."""
    losses, grads = [], []
    for i in range(golden.num_tasks):
        eps = golden.tree(f"task{i}/perturbation")
        point = golden.params | {
            name: jax.tree.map(jnp.add, golden.params[name], eps[name]) for name in eps
        }
        loss, grad = jax.value_and_grad(golden.task_loss(i))(point)
        losses.append(loss)
        grads.append(grad)
    return losses, jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)


def test_perturbed_gradients_gramian_weights_and_directions(golden):
    losses, task_grads = perturbed_task_gradients(golden)
    for i, loss in enumerate(losses):
        recorded = golden.tree(f"task{i}/perturbed_grad")
        golden.check(loss, golden[f"task{i}/perturbed_loss"])
        for name in recorded:
            own = jax.tree.map(lambda leaf, i=i: leaf[i], task_grads[name])
            golden.check(own, recorded[name])
            if name.startswith("head"):
                golden.check(own, golden.tree("head_grad")[name])

    gramian = samo_jax.gramian(task_grads["shared"])
    golden.check(gramian, golden["gramian"])
    weights = {
        "mean": jnp.full(golden.num_tasks, 1 / golden.num_tasks),
        "mgda": samo_jax.mgda_weights(gramian),
        "fairgrad_alpha1": samo_jax.fairgrad_weights(gramian, 1.0),
        "fairgrad_alpha2": samo_jax.fairgrad_weights(gramian, 2.0),
    }
    golden.check(
        weights["fairgrad_alpha1"], golden["weights/fairgrad_alpha1_converged"]
    )
    golden.check(
        weights["fairgrad_alpha2"], golden["weights/fairgrad_alpha2_converged"]
    )
    for name in ("mean", "mgda", "fairgrad_alpha2"):
        combined = samo_jax.combine(weights[name], task_grads["shared"])
        order = ("l0.kernel", "l0.bias", "l1.kernel", "l1.bias")
        flat = np.concatenate([np.ravel(combined[leaf]) for leaf in order])
        # The recorded MGDA solution stops 2e-9 from the optimum (next test).
        tolerance = (
            {"mgda": 1e-7}.get(name, 1e-9) if golden.dtype == "float64" else 1e-4
        )
        scale = np.max(np.abs(golden[f"combined/{name}"]))
        np.testing.assert_allclose(
            flat, golden[f"combined/{name}"], rtol=tolerance, atol=tolerance * scale
        )


def test_mgda_is_at_least_as_good_as_the_recorded_optimum(golden):
    gramian, recorded = golden["gramian"], golden["weights/mgda_exact"]
    weights = np.asarray(samo_jax.mgda_weights(gramian), np.float64)
    tolerance = {"float64": 5e-9, "float32": 1e-4}[golden.dtype]
    np.testing.assert_allclose(weights, recorded, rtol=tolerance, atol=tolerance)
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


SOLVERS = {
    "mean": (samo_jax.mean(), lambda g: np.full(len(g), 1 / len(g))),
    "fairgrad": (samo_jax.fairgrad(2.0), scipy_fairgrad(2.0)),
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_whole_transformation(golden, solver):
    """With alpha = 1 against NumPy, heads included."""
    solver, numpy_solver = SOLVERS[solver]
    tx = samo_jax.samo(
        solver,
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
    golden.check(optax.tree.get(state, "weights"), weights)
    for name, leaves in direction.items():
        for leaf, value in leaves.items():
            golden.check(value, expected[f"{name}.{leaf}"])
