"""The paper's method in PyTorch, as its official trainers order a step."""

import copy
from collections.abc import Callable
from typing import Any

import jax
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
        params = jax.tree.map(np.array, model.params)
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
        elif model.kind == "transformer":
            layers = [Embedding(trunk["embedding"], trunk["positions"])]
            for i in range(len(trunk["layers"]["qkv"])):
                layers.append(Block({n: w[i] for n, w in trunk["layers"].items()}))
            layers.append(Pool())
        else:
            layers = [*block("conv1", 2), *block("conv2", 2), *block("conv3", 2)]
            layers += [ChannelsLast(), Linear(trunk["dense"]), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        head = Conv if model.kind == "dense" else Linear
        self.heads = nn.ModuleDict({name: head(heads[name]) for name in model.tasks})

    def forward(
        self, x: torch.Tensor, tasks: list[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """The output of every head, or those of some tasks."""
        h = self.trunk(x)
        return {name: self.heads[name](h) for name in tasks or self.heads}


class ChannelsLast(nn.Module):
    """Flatten as JAX does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (B, C, H, W) to (B, H W C)."""
        return x.permute(0, 2, 3, 1).flatten(1)


class Embedding(nn.Module):
    """Of tokens and their positions."""

    def __init__(self, tokens: np.ndarray, positions: np.ndarray):
        """From both tables."""
        super().__init__()
        self.tokens = nn.Parameter(torch.tensor(tokens))
        self.positions = nn.Parameter(torch.tensor(positions))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """In the dtype of automatic mixed precision, as JAX keeps it between layers."""
        h = F.embedding(x, self.tokens) + self.positions
        kind = x.device.type
        enabled = torch.is_autocast_enabled(kind)
        return h.to(torch.get_autocast_dtype(kind)) if enabled else h


def standardize(h: torch.Tensor) -> torch.Tensor:
    """Layer normalisation without parameters."""
    return F.layer_norm(h, h.shape[-1:])


class Block(nn.Module):
    """A layer of a transformer."""

    def __init__(self, weights: dict[str, np.ndarray]):
        """With the model's weights."""
        super().__init__()
        self.linear = nn.ModuleDict({n: Linear(w) for n, w in weights.items()})

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Shape (B, T, C), in and out."""
        heads = (*h.shape[:-1], h.shape[-1] // 64, 64)
        parts = self.linear["qkv"](standardize(h)).chunk(3, dim=-1)
        q, k, v = (part.reshape(heads).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        h = h + self.linear["out"](attended.reshape(h.shape))
        wide = F.gelu(self.linear["up"](standardize(h)), approximate="tanh")
        return h + self.linear["down"](wide)


class Pool(nn.Module):
    """The mean over positions."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Shape (B, T, C) to (B, C)."""
        return standardize(h).mean(dim=1)


def losses_of(model: Model, outputs: dict, data: dict) -> list[torch.Tensor]:
    """The losses of the outputs' tasks, in task order."""
    found = []
    for i, name in enumerate(model.tasks):
        if name not in outputs:
            continue
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
        elif model.kind == "transformer":
            found.append(F.cross_entropy(out.float(), data["y"][:, i].long()))
        else:
            target = data["y"][:, i, None]
            found.append(F.binary_cross_entropy_with_logits(out, target))
    return found


def tensors(model: Model) -> dict[str, torch.Tensor]:
    """The model's data, images as PyTorch orders them."""
    data = {name: torch.tensor(np.array(leaf)) for name, leaf in model.data.items()}
    return {
        name: (leaf.permute(0, 3, 1, 2) if leaf.ndim == 4 else leaf).contiguous()
        for name, leaf in data.items()
    }


def move(weights: list, steps: list) -> list[torch.Tensor]:
    """Add the steps; return what the weights were."""
    kept = [w.detach().clone() for w in weights]
    with torch.no_grad():
        torch._foreach_add_(weights, steps)
    return kept


def restore(weights: list, kept: list) -> None:
    """Undo `move`."""
    with torch.no_grad():
        torch._foreach_copy_(weights, kept)


def to_radius(steps: list, rho: float) -> list[torch.Tensor]:
    """The same direction, of length rho."""
    length = torch.stack(torch._foreach_norm(steps)).norm()
    return torch._foreach_mul(steps, rho / (length + 1e-12))


def fair_weights(gramian: np.ndarray) -> np.ndarray:
    """FairGrad's, by SciPy as published."""
    num_tasks = len(gramian)
    return least_squares(
        lambda w: (gramian @ w) ** ALPHA_FAIR - 1 / w,
        np.full(num_tasks, 1 / num_tasks),
        bounds=(0, np.inf),
    ).x


def samo_step(model: Model, rho: float, alpha: float, mu: float) -> Callable[[], Any]:
    """A function that does one step of SAMO with FairGrad and SGD."""
    data = tensors(model)
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
            perturbations.append(to_radius(mixed, rho))
        head_steps = {
            name: to_radius([w.grad for w in head.parameters()], rho)
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
        weights = fair_weights(gramian)
        direction = torch.tensor(weights, dtype=torch.float32) @ jacobian
        for w, part in zip(
            shared, direction.split([w.numel() for w in shared]), strict=True
        ):
            w.grad = part.view_as(w).clone()
        optimizer.step()

    return step
