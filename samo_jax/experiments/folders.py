"""Run folders: what is written stays inside, and only one process writes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
_LONGEST_NAME = 255  # in bytes, on most file systems


def inside(folder: Path, *names: str) -> Path:
    """The path of names in a folder, which leads nowhere else.

    Raises:
        SystemExit: if one is not a plain name, or a symbolic link is on the way.

    Examples:
        >>> inside(Path("run"), "checkpoints", "mean").as_posix()
        'run/checkpoints/mean'
        >>> inside(Path("run"), "../mean")
        Traceback (most recent call last):
        ...
        SystemExit: run: '../mean' is not the name of a file in this folder
    """
    path = folder
    for name in names:
        plain = Path(name).name == name != ".." and name.isprintable()
        if not plain or not 0 < len(os.fsencode(name)) <= _LONGEST_NAME:
            raise SystemExit(
                f"{folder}: {name!r:.60} is not the name of a file in this folder"
            )
        path = path / name
        _refuse_link(path)
    return path


@contextmanager
def opened(folder: Path) -> Iterator[None]:
    """Have a run folder for this process alone, until it ends, however it does.

    Raises:
        SystemExit: if another process has it, or it has links or special files, through
            which this process would write elsewhere, or wait.
    """
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            _refuse_link(Path(parent, name))
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise SystemExit(
            f"{folder} is in use by another process: wait until it has ended, or take "
            "another folder"
        ) from None
    except OSError as error:
        raise SystemExit(f"{folder} cannot be locked: {error}") from None
    try:
        yield
    finally:
        lock.release()


def _refuse_link(path: Path) -> None:
    """End where a path is there, but is neither a folder nor a regular file."""
    special = path.exists() and not (path.is_file() or path.is_dir())
    if path.is_symlink() or special:
        raise SystemExit(
            f"{path} is a link or a special file, which a run's folder must not have: "
            "remove it"
        )
