"""`config`: settings of the whole library."""

import dataclasses
import os

_WORDS = {"0": False, "false": False, "off": False, "1": True, "true": True, "on": True}


@dataclasses.dataclass(slots=True)
class Config:
    """Settings of samo_jax: `samo_jax.config.rewrite_programs = False` changes one.

    A setting holds for what is traced afterwards: change it before the first step.

    Attributes:
        rewrite_programs: whether the library may rearrange the program (jaxpr) of a
            loss function: it keeps a NaN inside the head where it arose, and
            convolutions in loops over tasks fast on a CPU. Programs with operations
            that the library does not know are left as they are in any case. The
            environment variable `SAMO_JAX_REWRITE_PROGRAMS` (0 or 1) sets its value at
            import.

    Examples:
        >>> import samo_jax
        >>> samo_jax.config.rewrite_programs
        True
    """

    rewrite_programs: bool


def _flag(name: str, default: str) -> bool:
    """A switch among the environment variables."""
    value = os.environ.get(name, default)
    if value.lower() not in _WORDS:
        raise ValueError(f"`{name}` must be 0 or 1, got {value!r}. Unset it for 1.")
    return _WORDS[value.lower()]


config = Config(rewrite_programs=_flag("SAMO_JAX_REWRITE_PROGRAMS", "1"))
