"""Steps recorded from the official implementation of SAMO, and samo_jax's own."""

import copy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import samo_jax

GOLDEN = Path(__file__).parent / "golden"
FILES = ("samo_step_k2", "samo_step_k3", "samo_step_k11")
TOLERANCE = {"float64": 1e-9, "float32": 2e-4}
WEIGHTS = {
    "fairgrad_alpha1": lambda gramian: samo_jax.fairgrad_weights(gramian, 1.0),
    "fairgrad_alpha2": lambda gramian: samo_jax.fairgrad_weights(gramian, 2.0),
}


class Golden:
    """One recorded step, its parameters nested as {"shared", "head0", ...}."""

    def __init__(self, file, dtype):
        arrays = np.load(GOLDEN / f"{file}.npz")
        self.arrays = {name: arrays[name] for name in arrays.files}
        self.dtype = np.dtype(dtype).name
        self.num_tasks = int(self["num_tasks"])
        self.hyperparameters = {name: float(self[name]) for name in ("rho", "alpha")}
        self.mu = float(self["mu"])

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

    @property
    def params(self):
        return self.tree("params")

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

    def recorded(self):
        """What the official implementation found, by name."""
        found = {
            "losses": self["losses"],
            "mean_grad": self.tree("mean_grad"),
            "gramian": self["gramian"],
            "weights/mgda": self["weights/mgda_exact"],
        }
        for i in range(self.num_tasks):
            task = f"task{i}"
            found |= {
                f"{task}/difference": self[f"{task}/spsa_scalar"],
                f"{task}/local": self.tree(f"{task}/local")["shared"],
                f"{task}/perturbation": self.tree(f"{task}/perturbation"),
                f"{task}/loss": self[f"{task}/perturbed_loss"],
                f"{task}/grad": self.tree(f"{task}/perturbed_grad"),
                f"{task}/head": self.tree("head_grad")[f"head{i}"],
            }
        for name in WEIGHTS:
            found[f"weights/{name}"] = self[f"weights/{name}_converged"]
        for name in ("mean", "mgda", "fairgrad_alpha2"):
            found[f"combined/{name}"] = self[f"combined/{name}"]
        return found

    def tolerance(self, name):
        """Of `relative_error`."""
        tolerance = TOLERANCE[self.dtype]
        if name.endswith("/difference"):
            # In float32 a difference of two losses keeps their rounding, over 2 mu.
            rounding = np.max(self["losses"]) * np.finfo(self.dtype).eps / self.mu
            scalar = self[name.replace("difference", "spsa_scalar")]
            return tolerance + rounding / np.abs(scalar)
        # The recorded MGDA solution stops 2e-9 from the optimum.
        least = {"weights/mgda": 5e-9, "combined/mgda": 1e-7}.get(name, 0)
        return max(tolerance, least)

    def computed(self):
        """The same by samo_jax, compiled as one program."""

        def run(arrays):
            golden = copy.copy(self)
            golden.arrays = arrays
            return golden._computed()

        return jax.jit(run)(self.arrays)

    def _computed(self):
        losses, mean_grad = samo_jax.mean_value_and_grad(self.losses)(self.params)
        found = {"losses": jnp.stack(losses), "mean_grad": mean_grad}
        task_grads = []
        for i in range(self.num_tasks):
            of_task, grad = self._of_task(i)
            found |= {f"task{i}/{name}": value for name, value in of_task.items()}
            task_grads.append(grad)
        shared = jax.tree.map(lambda *leaves: jnp.stack(leaves), *task_grads)
        gramian = samo_jax.gramian(shared)
        weights = {name: solve(gramian) for name, solve in WEIGHTS.items()}
        # Of the recorded Gramian: at the optimum weights move more than it does.
        weights["mgda"] = samo_jax.mgda_weights(self.array("gramian"))
        found |= {f"weights/{name}": value for name, value in weights.items()}
        found["gramian"] = gramian
        weights |= {
            "mean": jnp.full(self.num_tasks, 1 / self.num_tasks),
            "mgda": samo_jax.mgda_weights(gramian),
        }
        order = ("l0.kernel", "l0.bias", "l1.kernel", "l1.bias")
        for name in ("mean", "mgda", "fairgrad_alpha2"):
            combined = samo_jax.combine(weights[name], shared)
            found[f"combined/{name}"] = jnp.concatenate(
                [jnp.ravel(combined[leaf]) for leaf in order]
            )
        return found

    def _of_task(self, i):
        """Each stage from the recorded results of the one before."""
        params, head = self.params, f"head{i}"
        mean_grad = self.tree("mean_grad")
        direction = self.tree(f"task{i}/direction")["shared"]

        def loss_of_shared(shared):
            return self.task_loss(i)({**params, "shared": shared})

        difference = samo_jax.directional_difference(
            loss_of_shared, params["shared"], direction, mu=self.mu
        )
        estimate = jax.tree.map(lambda z: jnp.sign(difference) * z, direction)
        scalar = self.array(f"task{i}/spsa_scalar")
        local = jax.tree.map(lambda z: scalar * z, direction)
        perturbation = {
            "shared": samo_jax.joint_perturbation(
                mean_grad["shared"], local, **self.hyperparameters
            ),
            head: samo_jax.scale_to_radius(
                mean_grad[head], self.hyperparameters["rho"]
            ),
        }
        eps = self.tree(f"task{i}/perturbation")
        point = params | {
            name: jax.tree.map(jnp.add, params[name], eps[name]) for name in eps
        }
        loss, grad = jax.value_and_grad(self.task_loss(i))(point)
        found = {
            "difference": difference,
            "local": samo_jax.layerwise_normalize(estimate, mean_grad["shared"]),
            "perturbation": perturbation,
            "loss": loss,
            "grad": {name: grad[name] for name in self.tree(f"task{i}/perturbed_grad")},
            "head": grad[head],
        }
        return found, grad["shared"]


def relative_error(actual, expected):
    """The largest error, relative to the entry plus its array's largest one."""
    worst = 0.0
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        size = np.abs(np.asarray(e, np.float64))
        error = np.abs(np.asarray(a, np.float64) - e) / (size + np.max(size))
        worst = max(worst, float(np.max(error)))
    return worst
