"""Run folders: what is written stays inside, and only one process writes."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from samo_jax.experiments.training.schema import shown

CONFIG = "config.json"
LOCK = ".lock"
_LONGEST_NAME = 255  # in bytes, on most file systems


def path(text: str) -> Path:
    """Command-line type of the name of a file or folder."""
    try:
        text.encode()
        os.lstat(text)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # said where it is opened or made
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(
            f"must be a path, got {shown(text)}: {reason}"
        ) from None
    return Path(text)


def run_folder(text: str) -> Path:
    """Command-line type of the folder of a run."""
    folder = path(text)
    if not (folder / CONFIG).is_file():
        raise argparse.ArgumentTypeError(
            f"{text} is no folder of a run: it has no {CONFIG}"
        )
    return folder


def results_folder(out: Path | None, name: str) -> Path:
    """A new or empty folder; where `out` is None, one named by the time."""
    folder = out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SystemExit(f"--out: {folder} exists and is not an empty folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"--out: {error}") from None
    return folder


def check_folder(args: argparse.Namespace) -> None:
    """Raise where there are both `--resume` and `--out`."""
    if args.resume and args.out:
        raise SystemExit("--out: drop it, a resumed run stays in its folder")


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
