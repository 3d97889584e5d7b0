"""What the command lines of the experiments share."""

import argparse
from datetime import datetime
from pathlib import Path


def positive_int(text: str) -> int:
    """An argument type."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def results_folder(out: Path | None, name: str) -> Path:
    """A new or empty folder; where `out` is None, one named by the time."""
    folder = out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SystemExit(f"--out: {folder} exists and is not an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
