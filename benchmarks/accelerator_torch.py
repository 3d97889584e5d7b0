"""The part of accelerator.py that runs in PyTorch, in a process of its own."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import accelerator_models
import torch
from accelerator_clock import times as clock
from step_methods import ALPHA, MU, RHO
from step_models import Model
from step_torch import (
    Network,
    fair_weights,
    losses_of,
    move,
    restore,
    tensors,
    to_radius,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# As JAX does by default.
torch.set_float32_matmul_precision("high")
torch.backends.cudnn.allow_tf32 = True
torch.backends.cudnn.benchmark = True


def wait() -> None:
    """Until the device has done everything."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def environment() -> dict[str, Any]:
    """What is installed, and the device."""
    kind = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    versions = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {"torch": str(torch.__version__), "device": kind, **versions}


class Training:
    """A network in training. Each method is one step, with FairGrad and SGD."""

    def __init__(self, model: Model):
        """With the model's weights and data."""
        self.model = model
        images = {"memory_format": torch.channels_last}
        is_images = model.kind in ("cnn", "dense")
        options = images if is_images else {}
        self.network = Network(model).to(DEVICE, **options)
        self.data = {name: leaf.to(DEVICE) for name, leaf in tensors(model).items()}
        self.data["x"] = self.data["x"].to(DEVICE, **options)
        self.shared = list(self.network.trunk.parameters())
        self.heads = {
            name: list(head.parameters()) for name, head in self.network.heads.items()
        }
        self.own = [w for head in self.heads.values() for w in head]
        self.everything = self.shared + self.own
        self.sizes = [w.numel() for w in self.shared]
        self.sgd = torch.optim.SGD(self.everything, lr=1e-3)
        self.batched = False
        self.solver_seconds = 0.0

    def losses(self, tasks: list[str] | None = None) -> list[torch.Tensor]:
        """Of all tasks, or of some."""
        half = self.model.kind == "transformer"
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half):
            outputs = self.network(self.data["x"], tasks)
            return losses_of(self.model, outputs, self.data)

    def rows(self) -> torch.Tensor:
        """Room for K gradients of the shared weights."""
        return torch.empty(self.model.num_tasks, sum(self.sizes), device=DEVICE)

    def like_shared(self, row: torch.Tensor) -> list[torch.Tensor]:
        """Parts of a row in the shapes of the shared weights."""
        parts = row.split(self.sizes)
        return [p.view(w.shape) for p, w in zip(parts, self.shared, strict=True)]

    def gradients(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """All tasks' at the present point, shape (K, n), and the heads' own."""
        losses = self.losses()
        if self.batched:
            found = torch.autograd.grad(
                torch.stack(losses),
                self.shared,
                torch.eye(len(losses), device=DEVICE),
                retain_graph=True,
                is_grads_batched=True,
            )
            rows = torch.cat([leaf.reshape(len(losses), -1) for leaf in found], dim=1)
        else:
            rows = self.rows()
            for row, loss in zip(rows, losses, strict=True):
                grads = torch.autograd.grad(loss, self.shared, retain_graph=True)
                torch._foreach_copy_(self.like_shared(row), list(grads))
        return rows, list(torch.autograd.grad(sum(losses), self.own))

    def gradient(self, task: str, row: torch.Tensor) -> list[torch.Tensor]:
        """One task's at the present point, into a row, and its head's."""
        (loss,) = self.losses([task])
        grads = torch.autograd.grad(loss, self.shared + self.heads[task])
        torch._foreach_copy_(self.like_shared(row), list(grads[: len(self.shared)]))
        return list(grads[len(self.shared) :])

    def mean_gradient(self) -> tuple[list[torch.Tensor], dict[str, list]]:
        """Of the mean loss: the shared weights', and the heads'."""
        grads = torch.autograd.grad(torch.stack(self.losses()).mean(), self.everything)
        shared, own = list(grads[: len(self.shared)]), iter(grads[len(self.shared) :])
        return shared, {n: [next(own) for _ in head] for n, head in self.heads.items()}

    @contextmanager
    def moved(self, weights: list, steps: list) -> Iterator[None]:
        """For a while."""
        kept = move(weights, steps)
        yield
        restore(weights, kept)

    def combined(self, rows: torch.Tensor) -> torch.Tensor:
        """FairGrad's direction."""
        gramian = (rows @ rows.T).double().cpu().numpy()
        start = time.perf_counter()
        weights = fair_weights(gramian)
        self.solver_seconds += time.perf_counter() - start
        return torch.tensor(weights, dtype=rows.dtype, device=DEVICE) @ rows

    def descend(self, direction: torch.Tensor, own: list[torch.Tensor]) -> None:
        """A step of SGD along the direction, heads along their own gradients."""
        grads = self.like_shared(direction) + own
        for w, grad in zip(self.everything, grads, strict=True):
            w.grad = grad
        self.sgd.step()

    def plain(self) -> None:
        """Of the mean loss."""
        self.sgd.zero_grad()
        torch.stack(self.losses()).mean().backward()
        self.sgd.step()

    def fairgrad(self) -> None:
        """At the parameters themselves."""
        rows, own = self.gradients()
        self.descend(self.combined(rows), own)

    def global_sam(self) -> None:
        """At one point for all tasks."""
        shared, heads = self.mean_gradient()
        steps = to_radius(shared, RHO)
        for own in heads.values():
            steps += to_radius(own, RHO)
        with self.moved(self.everything, steps):
            rows, own = self.gradients()
        self.descend(self.combined(rows), own)

    def f_mtl(self) -> None:
        """At each task's own point; loss and flat parts combined apart."""
        clean, clean_own = self.gradients()
        at_heads, rows, own = iter(clean_own), self.rows(), []
        for row, clean_row, (task, head) in zip(
            rows, clean, self.heads.items(), strict=True
        ):
            steps = to_radius(self.like_shared(clean_row), RHO)
            steps += to_radius([next(at_heads) for _ in head], RHO)
            with self.moved(self.shared + head, steps):
                own += self.gradient(task, row)
        rows -= clean
        self.descend(self.combined(clean) + self.combined(rows), own)

    def samo(self) -> None:
        """At each task's own point, by a probe of its own."""
        shared, heads = self.mean_gradient()
        norms = torch.stack(torch._foreach_norm(shared))
        common = torch._foreach_mul(shared, ALPHA)
        rows, own = self.rows(), []
        for row, (task, head) in zip(rows, self.heads.items(), strict=True):
            z = [torch.randn_like(w) for w in self.shared]
            factors = norms / torch.stack(torch._foreach_norm(z))
            factors *= (1 - ALPHA) * torch.sign(self.difference(task, z))
            mixed = torch._foreach_mul(z, list(factors.unbind()))
            steps = to_radius(torch._foreach_add(mixed, common), RHO)
            steps += to_radius(heads[task], RHO)
            with self.moved(self.shared + head, steps):
                own += self.gradient(task, row)
        self.descend(self.combined(rows), own)

    @torch.no_grad()
    def difference(self, task: str, z: list[torch.Tensor]) -> torch.Tensor:
        """Of one task's loss, on both sides along z."""
        found = []
        for mu in (MU, -MU):
            with self.moved(self.shared, torch._foreach_mul(z, mu)):
                found += self.losses([task])
        return found[0] - found[1]


STEPS: dict[str, Callable[[Training], None]] = {
    "plain": Training.plain,
    "FairGrad": Training.fairgrad,
    "global SAM": Training.global_sam,
    "SAMO": Training.samo,
    "F-MTL": Training.f_mtl,
}
_prepared: dict[tuple[str, str], Training] = {}


def prepare(model: str, method: str, small: bool) -> dict[str, Any]:
    """Warm up, choose the faster way of K backward passes, and measure memory."""
    for other in [key for key in _prepared if key[0] != model]:
        del _prepared[other]
    cuda = torch.cuda if DEVICE.type == "cuda" else None
    before = cuda.memory_allocated() if cuda else 0
    training = Training(accelerator_models.make(model, small))
    step, ways, found = STEPS[method], {}, {}
    start = time.perf_counter()
    step(training)
    wait()
    found["first_s"] = time.perf_counter() - start
    if method in ("FairGrad", "global SAM", "F-MTL"):
        for batched in (False, True):
            training.batched = batched
            try:
                ways[batched] = min(
                    clock(lambda: step(training), wait, seconds=0)["ms"]
                )
            except RuntimeError as error:
                found["batched_error"] = str(error)[:200]
        training.batched = min(ways, key=lambda way: ways[way])
        found["one_by_one_ms"], found["batched_ms"] = ways[False], ways.get(True)
    if cuda:
        cuda.reset_peak_memory_stats()
        step(training)
        wait()
        found["memory_bytes"] = cuda.max_memory_allocated() - before
    _prepared[model, method] = training
    return found


def times(model: str, method: str, small: bool, seconds: float) -> dict[str, Any]:
    """Of one method's step."""
    if (model, method) not in _prepared:
        prepare(model, method, small)
    training = _prepared[model, method]
    calls, training.solver_seconds = 0, 0.0

    def step():
        nonlocal calls
        calls += 1
        STEPS[method](training)

    found = clock(step, wait, seconds)
    finite = all(bool(torch.isfinite(w).all()) for w in training.everything)
    return {
        **found,
        "solver_ms": 1e3 * training.solver_seconds / calls,
        "finite": finite,
    }
