"""The models of accelerator.py, by name: as measured, and small for a rehearsal."""

from functools import lru_cache, partial

from step_models import Model, cnn, dense, transformer

SIZES = {
    "cnn40": (partial(cnn, 40, 256, 64), partial(cnn, 12, 8, 16)),
    "dense3": (partial(dense, 3, 256), partial(dense, 3, 16)),
    "transformer8": (transformer, partial(transformer, 8, 2, 64, 64, (2, 8))),
}


@lru_cache(maxsize=1)
def make(name: str, small: bool) -> Model:
    """The model, on the default device."""
    return SIZES[name][small]()
