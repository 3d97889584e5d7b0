"""Settings of a run: on the command line and in files."""

import argparse
import copy
import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from samo_jax.experiments.command import check_folder, results_folder
from samo_jax.experiments.tables import replace

CONFIG = "config.json"
_NO_SETTINGS = (
    *("config", "resume", "out", "run"),
    *("checkpoint_every", "distributed"),
)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


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
            document = _load(path)
        except (OSError, ValueError) as error:
            self.error(f"{path} must be a JSON file, or a .toml file: {error}")
        if not isinstance(document, dict):
            self.error(f"{path} must hold settings by name, got {document!r:.40}")
        reader = copy.copy(self)
        known = settings(reader.parse_args([]))
        values = {}
        for key, value in document.items():
            reader.prog = f"{path}: {key!r}"
            if key not in known:
                reader.error(f"is no setting; there are {', '.join(known)}")
            if value is not None:
                values[key] = getattr(reader.parse_args(arguments(key, value)), key)
        return values


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--config` and `--resume`."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="JSON or TOML file of settings, named as the options are, that stand "
        f"where the command line gives none; as the {CONFIG} of a run",
    )
    group.add_argument(
        "--resume",
        type=run_folder,
        metavar="FOLDER",
        help="go on with an interrupted run in its folder, with its settings",
    )


def run_folder(text: str) -> Path:
    """An argument type."""
    if not (Path(text) / CONFIG).is_file():
        raise argparse.ArgumentTypeError(
            f"{text} is no folder of a run: it has no {CONFIG}"
        )
    return Path(text)


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
        folder: of the run.
        config: its settings.
        writes: whether this process is one that does.

    Raises:
        SystemExit: if it has begun with other settings.
    """
    path = folder / CONFIG
    if not path.exists():
        if writes:
            replace(path, json.dumps(config, indent=1))
        return False
    saved = json.loads(path.read_text())
    changed = [key for key in config if config[key] != saved.get(key)]
    if changed:
        raise SystemExit(
            f"--resume: {path} has {changed[0]} {saved.get(changed[0])!r}, "
            f"not {config[changed[0]]!r}: drop the options beside --resume"
        )
    return True


@contextmanager
def resumable(args: argparse.Namespace, name: str) -> Iterator[Path]:
    """The folder of a new run, or of `--resume`; on Ctrl-C, say how to go on."""
    check_folder(args)
    folder = args.resume or results_folder(args.out, name)
    goes_on(folder, settings(args))
    try:
        yield folder
    except KeyboardInterrupt:
        print(
            "Interrupted. To go on after the runs that had finished: "
            f"python -m samo_jax.experiments {name} --resume {folder}"
        )
        raise SystemExit(130) from None


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


def _load(path: Path) -> Any:
    text = path.read_text()
    return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
