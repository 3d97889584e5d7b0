"""The user's folder for caches, and what is kept there."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from samo_jax.experiments.data.checked_files import short
from samo_jax.experiments.data.malformed import MalformedFileError

T = TypeVar("T")


def cache_folder() -> Path:
    """The folder, in `XDG_CACHE_HOME` if that is set."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "samo_jax"


def cached(
    path: Path,
    load: Callable[[Path], T],
    make: Callable[[], T],
    save: Callable[[Path, T], None],
) -> T:
    """The content of a file, which is made if there is none.

    Args:
        path: path of the file.
        load: function that reads it.
        make: function that makes its content.
        save: function that writes it.

    Raises:
        MalformedFileError: it cannot be read.
    """
    if path.exists():
        try:
            return load(path)
        except Exception as error:  # whatever the parser meets in some bytes
            raise MalformedFileError(
                f"{path} cannot be read ({short(error)}): delete it, and it is made "
                "anew"
            ) from error
    content = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}{path.suffix}")
    save(partial, content)
    partial.replace(path)
    return content
