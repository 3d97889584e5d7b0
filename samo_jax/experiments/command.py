"""What the command lines of the experiments share."""

import argparse
from datetime import datetime
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


def positive_int(text: str) -> int:
    """An argument type."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def _number(text: str, requirement: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"must be {requirement}, got {text!r}")
    return value


def radius(text: str) -> float:
    """An argument type."""
    return _number(text, "a finite non-negative number", 0.0, 1e30)


def seconds(text: str) -> float:
    """An argument type."""
    return _number(text, "a non-negative number of seconds", 0.0, float("inf"))


def positive(text: str) -> float:
    """An argument type."""
    return _number(text, "a finite positive number", 1e-30, 1e30)


def share(text: str) -> float:
    """An argument type."""
    return _number(text, "a number in [0, 1]", 0.0, 1.0)


def add_count_argument(
    parser: argparse.ArgumentParser, option: str, default: int, what: str
) -> None:
    """Declare a positive number."""
    parser.add_argument(
        option, type=positive_int, default=default, help=f"{what} (default: {default})"
    )


def add_out_argument(parser: argparse.ArgumentParser, name: str) -> None:
    """Declare `--out`, which `results_folder` takes."""
    parser.add_argument(
        "--out",
        type=Path,
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


def epochs_progress(console: Console, width: int) -> Progress:
    """A bar that counts epochs, with room for descriptions of some width."""
    return Progress(
        TextColumn(f"{{task.description:<{width}}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
