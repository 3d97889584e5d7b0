"""Settings of a run: on the command line and in files."""

import argparse
import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from samo_jax.experiments.training.folders import (
    CONFIG,
    check_folder,
    opened,
    path,
    results_folder,
    run_folder,
)
from samo_jax.experiments.training.results import replace
from samo_jax.experiments.training.runs import evaluated_epochs
from samo_jax.experiments.training.schema import conform, read, shown

_NO_SETTINGS = (
    *("config", "resume", "out", "run"),
    *("checkpoint_every", "keep_checkpoints", "distributed", "join_timeout"),
)
_LONGEST_ERROR = 2000


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end."""
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        self.exit(2, f"{self.prog}: {line:.{_LONGEST_ERROR}} (see --help)\n")


class FileParser(Parser):
    """A parser whose defaults come from `--config FILE` or `--resume FOLDER`."""

    def parse_known_args(self, args=None, namespace=None):  # pyrefly: ignore
        """Parse twice: for the file, and with its settings as defaults."""
        parsed = super().parse_known_args(args, namespace)
        path = _file(parsed[0])
        if path is None:
            return parsed
        self.set_defaults(**self._read(path))
        return super().parse_known_args(args, namespace)

    def _read(self, path: Path) -> dict[str, Any]:
        """The settings of a file, checked as arguments are."""
        try:
            document = read(path)
        except (OSError, ValueError) as error:
            self.error(f"{path} must be a JSON file, or a .toml file: {error}")
        if not isinstance(document, dict):
            self.error(f"{path} must hold settings by name, got {shown(document)}")
        reader = copy.copy(self)
        known = settings(Parser.parse_known_args(reader, [])[0])
        values = {}
        for key, value in document.items():
            reader.prog = f"{path}: {shown(key)}"
            if key not in known:
                reader.error(f"is no setting; there are {', '.join(known)}")
            if value not in (None, []):
                values[key] = getattr(reader._setting(key, value), key)
        return values

    def _setting(self, key: str, value: Any) -> argparse.Namespace:
        """The arguments that the command line makes of a setting."""
        items = value if isinstance(value, list) else [value]
        for item in items:
            if not isinstance(item, str | int | float):
                self.error(f"must be a value or a list of values, got {shown(item)}")
            if items is value and str(item).startswith("-"):
                # An option, such as the name of this very file.
                self.error(f"must not begin with a dash, got {shown(item)}")
        try:
            words = arguments(key, value)
        except ValueError as error:  # of a number with too many digits
            self.error(str(error))
        parsed, others = Parser.parse_known_args(self, words)
        if others:
            self.error(f"unrecognized arguments: {', '.join(map(shown, others))}")
        return parsed


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--config` and `--resume`."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--config",
        type=path,
        metavar="FILE",
        help="JSON or TOML file of settings, named as the options are, that stand "
        f"where the command line gives none; as the {CONFIG} of a run",
    )
    group.add_argument(
        "--resume",
        type=run_folder,
        metavar="FOLDER",
        help="go on with an interrupted run in its folder, with its settings; a "
        "benchmark's also with more --epochs",
    )


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that a run's outcome depends on, as JSON has them."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(args).items()
        if key not in _NO_SETTINGS
    }


def goes_on(folder: Path, config: dict[str, Any], writes: bool = True) -> bool:
    """Whether a run has begun in this folder; if not, write `config.json`.

    Args:
        folder: folder of the run.
        config: settings of the run.
        writes: whether this process is one that does.

    Raises:
        SystemExit: if it has begun with other settings.
    """
    file = folder / CONFIG
    if not file.exists():
        if writes:
            replace(file, json.dumps(config, indent=1))
        return False
    try:
        saved = conform(read(file), dict[str, Any], "it")
    except (OSError, ValueError) as error:
        raise SystemExit(f"--resume: {file} cannot be read: {error}") from None
    missing = [key for key in config if key not in saved]
    if missing:
        raise SystemExit(
            f"--resume: {file} has no {missing[0]}: it is of another version; begin "
            "anew in another folder"
        )
    changed = [key for key in config if config[key] != saved[key]]
    if changed:
        raise SystemExit(
            f"--resume: {file} has {changed[0]} {shown(saved[changed[0]])}, "
            f"not {shown(config[changed[0]])}: drop the options beside --resume"
        )
    return True


def epochs_before(folder: Path, config: dict[str, Any]) -> int | None:
    """The epochs of the runs in this folder, if it is to have more of them.

    Args:
        folder: folder of the run.
        config: settings of the run.

    Raises:
        SystemExit: if the longer run would be evaluated after other epochs.
    """
    try:
        saved = conform(read(folder / CONFIG), dict[str, Any], "it")
    except (OSError, ValueError):
        return None  # `goes_on` says why.
    before, after = saved.get("epochs"), config.get("epochs")
    if not (isinstance(before, int) and isinstance(after, int) and before < after):
        return None
    if saved | {"epochs": after} != saved | config:
        return None
    if not _same_evaluations(before, after):
        fitting = next(n for n in count(after) if _same_evaluations(before, n))
        raise SystemExit(
            f"--epochs: a run of {after} has evaluations after other epochs than its "
            f"first {before}: the next that fits is {fitting}"
        )
    return before


def _same_evaluations(before: int, after: int) -> bool:
    """Whether a run has had all evaluations that it would have as a longer one."""
    return {n for n in evaluated_epochs(after) if n <= before} <= set(
        evaluated_epochs(before)
    )


@contextmanager
def resumable(args: argparse.Namespace, name: str) -> Iterator[Path]:
    """The folder of a new run, or of `--resume`; on Ctrl-C, say how to go on."""
    check_folder(args)
    folder = args.resume or results_folder(args.out, name)
    go_on = f"python -m samo_jax.experiments {name} --resume {folder}"
    with opened(folder):
        goes_on(folder, settings(args))
        try:
            yield folder
        except KeyboardInterrupt:
            print(f"Interrupted. To go on after the runs that had finished: {go_on}")
            raise SystemExit(130) from None
        except OSError as error:
            raise SystemExit(
                f"Stopped: {error}. What was saved stays: {go_on}"
            ) from None


def arguments(key: str, value: Any) -> list[str]:
    """A setting as words of the command line.

    >>> arguments("rho", 0.1), arguments("methods", ["mean", "mgda"])
    (['--rho=0.1'], ['--methods', 'mean', 'mgda'])
    """
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]


def _file(args: argparse.Namespace) -> Path | None:
    resumed = getattr(args, "resume", None)
    return resumed / CONFIG if resumed else getattr(args, "config", None)
