"""The user's folder for caches."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder, in `XDG_CACHE_HOME` if that is set."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "samo_jax"
