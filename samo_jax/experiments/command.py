"""Command lines of the experiments: what they share."""

import argparse
import os
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from samo_jax.experiments.schema import shown


def positive_int(text: str, most: int = 10**6) -> int:
    """An argument type."""
    if not text.isdecimal() or not text.strip("0"):
        raise argparse.ArgumentTypeError(
            f"must be a positive integer, got {shown(text)}"
        )
    if len(text) > 18 or int(text) > most:
        raise argparse.ArgumentTypeError(f"must be at most {most}, got {shown(text)}")
    return int(text)


def seed(text: str) -> int:
    """An argument type."""
    return int(_number(text, "an integer in [0, 2**32)", 0, 2**32 - 1, int))


def _number(
    text: str,
    requirement: str,
    low: float,
    high: float,
    parse: Callable[[str], float] = float,
) -> float:
    try:
        value = parse(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"must be {requirement}, got {shown(text)}")
    return value


def path(text: str) -> Path:
    """An argument type: what can be the name of a file or folder."""
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


def radius(text: str) -> float:
    """An argument type."""
    return _number(text, "a finite non-negative number", 0.0, 1e30)


def seconds(text: str) -> float:
    """An argument type."""
    return _number(text, "a non-negative number of seconds", 0.0, float("inf"))


def patience(text: str) -> float:
    """An argument type."""
    return _number(text, "a number of seconds in [1, 1e6]", 1.0, 1e6)


def factor(text: str) -> float:
    """An argument type."""
    return _number(text, "a number in [0.001, 100]", 1e-3, 100)


def share(text: str) -> float:
    """An argument type."""
    return _number(text, "a number in [0, 1]", 0.0, 1.0)


def add_count_argument(
    parser: argparse.ArgumentParser,
    option: str,
    default: int,
    what: str,
    most: int = 1000,
) -> None:
    """Declare a positive number."""
    parser.add_argument(
        option,
        type=partial(positive_int, most=most),
        default=default,
        help=f"{what} (default: {default})",
    )


def add_out_argument(parser: argparse.ArgumentParser, name: str) -> None:
    """Declare `--out`, which `results_folder` takes."""
    parser.add_argument(
        "--out",
        type=path,
        help=f"folder for results (default: runs/{name}-DATE-TIME)",
    )


def check_folder(args: argparse.Namespace) -> None:
    """Raise where there are both `--resume` and `--out`."""
    if args.resume and args.out:
        raise SystemExit("--out: drop it, a resumed run stays in its folder")


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


def make_console(width: int, quiet: bool = False) -> Console:
    """A console that prints on a terminal, or in some width into a file.

    Names of methods, tasks and folders are text: nothing in them is markup.
    """
    return Console(
        width=None if sys.stdout.isatty() else width,
        quiet=quiet,
        markup=False,
        emoji=False,
    )


def epochs_progress(console: Console, width: int) -> Progress:
    """A bar that counts epochs, with room for descriptions of some width."""
    return Progress(
        TextColumn(f"{{task.description:<{width}}}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
