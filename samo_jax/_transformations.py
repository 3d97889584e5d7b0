"""`TRANSFORMATIONS`: the registry of methods that are transformations of their own."""

from samo_jax._f_mtl import f_mtl
from samo_jax._look_sam import look_sam
from samo_jax._registry import PerturbationEntry

_ENTRIES = (
    PerturbationEntry(
        f_mtl,
        call="f_mtl(combiner, rho)",
        about="each task's gradient; loss and flat parts combined apart",
        choose="combiners that weigh, K small",
        passes="K b",
        copies="K",
        remembers="two combiner states",
    ),
    PerturbationEntry(
        look_sam,
        call="look_sam(inner, every, alpha)",
        about="as `inner`, every few steps",
        choose="time is short",
        passes="1/every of inner's",
        copies="1",
        remembers="one direction",
    ),
)
TRANSFORMATIONS = {entry.factory.__name__: entry for entry in _ENTRIES}
