"""Methods of the study of local parts: what SAMO's is compared with."""

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

from samo_jax.experiments.training.methods import method_of

PLAIN, GLOBAL = "fairgrad", "fairgrad+global_sam"


class Known(NamedTuple):
    """Method that the study knows more of than its text.

    Attributes:
        label: name in tables and pictures.
        passes: numbers of forward and of backward passes with K tasks.
    """

    label: str
    passes: Callable[[int], tuple[int, int]]


def _probe(arguments: str) -> str:
    return f"fairgrad+joint_sam(local=probe({arguments}))"


_SHARED = "num_probes=8, shared=True"
_KNOWN = {
    PLAIN: Known("plain", lambda k: (1, k)),
    GLOBAL: Known("global", lambda k: (2, 1 + k)),
    "fairgrad+local_sam": Known("L-SAM", lambda k: (1 + k, 2 * k)),
    "fairgrad+f_mtl": Known("F-MTL", lambda k: (1 + k, 2 * k)),
    "fairgrad+samo": Known("SAMO", lambda k: (1 + 3 * k, 1 + k)),
    _probe('sign="random"'): Known("random-sign control", lambda k: (1 + k, 1 + k)),
    'fairgrad+joint_sam(local="local")': Known(
        "exact local part", lambda k: (1 + k, 1 + 2 * k)
    ),
    _probe("shared=True"): Known("shared probe", lambda k: (5, 1 + k)),
    _probe(f'{_SHARED}, distribution="rademacher"'): Known(
        "8 shared Rademacher", lambda k: (17 + k, 1 + k)
    ),
    _probe(f"{_SHARED}, mask=last_layer"): Known(
        "8 on the last layer", lambda k: (17 + k, 1 + k)
    ),
    _probe("unit=True"): Known("unit probes", lambda k: (1 + 3 * k, 1 + k)),
    "fairgrad+memory_sam": Known("memory", lambda k: (1 + k, 1 + k)),
    "fairgrad+memory_sam(decay=0.9)": Known(
        "memory, average", lambda k: (1 + k, 1 + k)
    ),
    "fairgrad+memory_sam(clean_pass=False)": Known(
        "memory, no clean pass", lambda k: (k, k)
    ),
    'fairgrad+joint_sam(alpha="adaptive", local=probe(shared=True))': Known(
        "shared probe, adaptive", lambda k: (3 + k, 1 + k)
    ),
    'fairgrad+memory_sam(alpha="adaptive", decay=0.9)': Known(
        "memory, adaptive", lambda k: (1 + k, 1 + k)
    ),
}
KNOWN = MappingProxyType({str(method_of(text)): of for text, of in _KNOWN.items()})
METHODS = tuple(KNOWN)
COMPARED = METHODS[:6]


def label_of(text: str) -> str:
    """The name of a method in tables and pictures."""
    return KNOWN[text].label if text in KNOWN else text
