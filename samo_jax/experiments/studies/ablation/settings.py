"""Settings of the ablation: FairGrad with SAMO, its halves, neither, a control."""

from types import MappingProxyType
from typing import Any, NamedTuple

PLAIN, GLOBAL, SAMO = "fairgrad", "fairgrad+global_sam", "fairgrad+samo"
# Methods that are run by default, and their names in tables and pictures.
LABELS = MappingProxyType(
    {
        PLAIN: "plain",
        GLOBAL: "global",
        "fairgrad+local_sam": "L-SAM",
        SAMO: "SAMO",
        "fairgrad+joint_sam(local=probe(sign='random'))": "random-sign control",
    }
)


class Setting(NamedTuple):
    """Setting that a network is trained with.

    Attributes:
        method: the text of one.
        rho: radius.
        alpha: share of the global gradient.
        mu: step of the probes.
    """

    method: str
    rho: float = 0.0
    alpha: float = 0.5
    mu: float = 1e-2

    def swept(self) -> dict[str, Any]:
        """The parameters, which need no new compilation."""
        return {"rho": self.rho, "alpha": self.alpha, "mu": self.mu}


def label_of(text: str) -> str:
    """The name of a method in tables and pictures."""
    return LABELS.get(text, text)
