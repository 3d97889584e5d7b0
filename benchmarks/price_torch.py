"""Steps in PyTorch for price.py: TorchJD's, and in the order of LibMTL's `rep_grad`."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from step_models import Model
from step_torch import Network, losses_of, move, restore, tensors, to_radius
from torchjd.aggregation import (
    FairGradWeighting,
    GramianWeightedAggregator,
    MGDAWeighting,
    UPGradWeighting,
)
from torchjd.autogram import Engine
from torchjd.autojac import jac_to_grad, mtl_backward

# Each as it is by default there, but FairGrad's alpha, which is ours.
WEIGHTINGS: dict[str, Callable[[], Callable[[torch.Tensor], torch.Tensor]]] = {
    "FairGrad": lambda: FairGradWeighting(2.0),
    "MGDA": MGDAWeighting,
    "UPGrad": UPGradWeighting,
}


@dataclass
class Trainer:
    """A network, its data and its optimizer: stochastic gradient descent."""

    model: Model

    def __post_init__(self) -> None:
        """Copy weights and data."""
        self.network = Network(self.model)
        # The same parameters without TorchJD's hooks, for the clean pass.
        self.clean = copy.deepcopy(self.network)
        pairs = zip(self.network.modules(), self.clean.modules(), strict=True)
        for module, twin in pairs:
            twin._parameters = module._parameters
        self.data = tensors(self.model)
        self.shared = list(self.network.trunk.parameters())
        self.heads = [
            list(self.network.heads[name].parameters()) for name in self.model.tasks
        ]
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-3)

    def losses(self, features: torch.Tensor) -> list[torch.Tensor]:
        """All losses, from the trunk's output."""
        outputs = {name: head(features) for name, head in self.network.heads.items()}
        return losses_of(self.model, outputs, self.data)

    def mean_gradient(self) -> None:
        """One backward pass of the mean loss."""
        losses = losses_of(self.model, self.clean(self.data["x"]), self.data)
        torch.stack(losses).mean().backward()

    def by_jacobian(self, weighting: Callable) -> Callable[[], None]:
        """TorchJD's `mtl_backward`: K gradients by the shared parameters."""
        aggregator = GramianWeightedAggregator(weighting)

        def backward() -> None:
            features = self.network.trunk(self.data["x"])
            mtl_backward(
                self.losses(features),
                features=features,
                tasks_params=self.heads,
                shared_params=self.shared,
            )
            jac_to_grad(self.shared, aggregator)

        return backward

    def by_gramian(self, weighting: Callable) -> Callable[[], None]:
        """TorchJD's `Engine`: the Gramian alone, and one weighted backward pass."""
        engine = Engine(self.network.trunk, batch_dim=None)

        def backward() -> None:
            losses = torch.stack(self.losses(self.network.trunk(self.data["x"])))
            weights = weighting(engine.compute_gramian(losses))
            losses.backward(weights)

        return backward

    def by_representation(self, weighting: Callable) -> Callable[[], None]:
        """As LibMTL's `rep_grad` orders it: K passes through heads, one through all."""

        def backward() -> None:
            features = self.network.trunk(self.data["x"])
            leaf = features.detach().requires_grad_()
            rows = []
            for loss in self.losses(leaf):
                leaf.grad = None
                loss.backward(retain_graph=True)
                rows.append(leaf.grad.flatten())
            jacobian = torch.stack(rows)
            weights = weighting(jacobian @ jacobian.T)
            features.backward((weights @ jacobian).view_as(features))

        return backward

    def step(
        self, backward: Callable[[], None], rho: float | None = None
    ) -> Callable[[], None]:
        """A whole step; with a radius at the point of global SAM."""
        groups = [self.shared, *self.heads]

        def step() -> None:
            self.optimizer.zero_grad()
            if rho is None:
                backward()
            else:
                self.mean_gradient()
                steps = [to_radius([w.grad for w in group], rho) for group in groups]
                kept = [move(*pair) for pair in zip(groups, steps, strict=True)]
                self.optimizer.zero_grad()
                backward()
                for pair in zip(groups, kept, strict=True):
                    restore(*pair)
            self.optimizer.step()

        return step


def steps(model: Model, rho: float) -> dict[tuple[str, str], Callable[[], None]]:
    """Steps by method and by way, plain and at the point of global SAM."""
    found = {}
    for name, radius in (("plain", None), ("global SAM", rho)):
        trainer = Trainer(model)
        found[f"mean + {name}", "backward"] = trainer.step(
            trainer.mean_gradient, radius
        )
        for combiner, make in WEIGHTINGS.items():
            ways = {
                "TorchJD, mtl_backward": Trainer.by_jacobian,
                "TorchJD, Engine": Trainer.by_gramian,
                "LibMTL's order": Trainer.by_representation,
            }
            for way, backward in ways.items():
                trainer = Trainer(model)
                found[f"{combiner} + {name}", way] = trainer.step(
                    backward(trainer, make()), radius
                )
    return found
