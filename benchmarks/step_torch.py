"""The paper's method in PyTorch, as its official trainers order a step."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares
from step_models import Model
from torch import nn
from torch.nn import functional as F

ALPHA_FAIR = 2.0


class Conv(nn.Conv2d):
    """3 x 3 without bias, padded like "SAME" in JAX."""

    def __init__(self, kernel: np.ndarray, stride: int = 1):
        """From a kernel in HWIO order."""
        super().__init__(kernel.shape[2], kernel.shape[3], 3, stride, bias=False)
        self.weight = nn.Parameter(
            torch.tensor(kernel).permute(3, 2, 0, 1).contiguous()
        )
        self.before = 0 if stride == 2 else 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images in, images out."""
        return super().forward(F.pad(x, (self.before, 1, self.before, 1)))


class Linear(nn.Linear):
    """Without bias."""

    def __init__(self, kernel: np.ndarray):
        """From a kernel of shape (in, out)."""
        super().__init__(*kernel.shape, bias=False)
        self.weight = nn.Parameter(torch.tensor(kernel).T.contiguous())


class Network(nn.Module):
    """Trunk and heads of one of the models."""

    def __init__(self, model: Model):
        """With the model's weights."""
        super().__init__()
        params = {
            part: {name: np.array(leaf) for name, leaf in leaves.items()}
            for part, leaves in model.params.items()
        }
        trunk, heads = params["trunk"], params["heads"]

        def block(name: str, stride: int = 1) -> list[nn.Module]:
            return [Conv(trunk[name], stride), nn.ReLU()]

        if model.kind == "dense":
            twice = nn.Upsample(scale_factor=2)
            layers = [
                *block("down1", 2),
                *block("down2", 2),
                *block("middle"),
                twice,
                *block("up1"),
                twice,
                *block("up2"),
            ]
        elif model.kind == "mlp":
            layers = []
            for kernel in trunk.values():
                layers += [Linear(kernel), nn.ReLU()]
        else:
            layers = [*block("conv1", 2), *block("conv2", 2), *block("conv3", 2)]
            layers += [ChannelsLast(), Linear(trunk["dense"]), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        head = Conv if model.kind == "dense" else Linear
        self.heads = nn.ModuleDict({name: head(heads[name]) for name in model.tasks})

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The output of every head."""
        h = self.trunk(x)
        return {name: head(h) for name, head in self.heads.items()}


class ChannelsLast(nn.Module):
    """Flatten as JAX does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (B, C, H, W) to (B, H W C)."""
        return x.permute(0, 2, 3, 1).flatten(1)


def losses_of(model: Model, outputs: dict, data: dict) -> list[torch.Tensor]:
    """The K losses, in task order."""
    found = []
    for i, name in enumerate(model.tasks):
        out = outputs[name]
        if name == "segmentation":
            found.append(F.cross_entropy(out, data["segmentation"]))
        elif name == "depth":
            found.append((out - data["depth"]).abs().mean())
        elif name == "normals":
            cosine = F.cosine_similarity(out, data["normals"], eps=1e-6)
            found.append((1 - cosine).mean())
        elif model.kind == "mlp":
            found.append(F.mse_loss(out, data["y"][:, i, None]))
        else:
            target = data["y"][:, i, None]
            found.append(F.binary_cross_entropy_with_logits(out, target))
    return found


def samo_step(model: Model, rho: float, alpha: float, mu: float) -> Callable[[], Any]:
    """A function that does one step of SAMO with FairGrad and SGD."""
    data = {name: torch.tensor(np.array(leaf)) for name, leaf in model.data.items()}
    if model.kind != "mlp":
        data = {
            name: leaf.permute(0, 3, 1, 2).contiguous() if leaf.ndim == 4 else leaf
            for name, leaf in data.items()
        }
    network = Network(model)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    shared = list(network.trunk.parameters())

    def losses(net: nn.Module) -> list[torch.Tensor]:
        return losses_of(model, net(data["x"]), data)

    def zeroth_order(task: int) -> list[torch.Tensor]:
        estimator = copy.deepcopy(network).eval()
        weights = list(estimator.trunk.parameters())
        z = [torch.randn_like(w) for w in weights]
        found = []
        with torch.no_grad():
            for move in (mu, -2 * mu):
                for w, direction in zip(weights, z, strict=True):
                    w.add_(direction, alpha=move)
                found.append(losses(estimator)[task])
        slope = (found[0] - found[1]) / (2 * mu)
        return [slope * direction for direction in z]

    def move(weights: list, steps: list) -> list[torch.Tensor]:
        kept = [w.detach().clone() for w in weights]
        with torch.no_grad():
            for w, step in zip(weights, steps, strict=True):
                w.add_(step)
        return kept

    def restore(weights: list, kept: list) -> None:
        with torch.no_grad():
            for w, value in zip(weights, kept, strict=True):
                w.copy_(value)

    def to_radius(steps: list) -> list[torch.Tensor]:
        length = torch.sqrt(sum(step.pow(2).sum() for step in steps))
        return [rho * step / (length + 1e-12) for step in steps]

    def step() -> None:
        optimizer.zero_grad()
        torch.stack(losses(network)).mean().backward()
        mean_grad = [w.grad.clone() for w in shared]
        perturbations = []
        for task in range(model.num_tasks):
            mixed = [
                alpha * g + (1 - alpha) * g.norm() * ghat / ghat.norm()
                for g, ghat in zip(mean_grad, zeroth_order(task), strict=True)
            ]
            perturbations.append(to_radius(mixed))
        head_steps = {
            name: to_radius([w.grad for w in head.parameters()])
            for name, head in network.heads.items()
        }
        optimizer.zero_grad()

        rows = []
        for task, name in enumerate(model.tasks):
            own = list(network.heads[name].parameters())
            kept = move(shared + own, perturbations[task] + head_steps[name])
            losses(network)[task].backward()
            rows.append(torch.cat([w.grad.flatten() for w in shared]))
            for w in shared:
                w.grad = None
            restore(shared + own, kept)

        jacobian = torch.stack(rows)
        gramian = (jacobian @ jacobian.T).numpy()
        weights = least_squares(
            lambda w: (gramian @ w) ** ALPHA_FAIR - 1 / w,
            np.full(model.num_tasks, 1 / model.num_tasks),
            bounds=(0, np.inf),
        ).x
        direction = torch.tensor(weights, dtype=torch.float32) @ jacobian
        for w, part in zip(
            shared, direction.split([w.numel() for w in shared]), strict=True
        ):
            w.grad = part.view_as(w).clone()
        optimizer.step()

    return step
