"""Results of runs in a folder's `results.json`: written and read, for every study."""

import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from samo_jax.experiments.training.schema import conform, read, shown

RESULTS = "results.json"
T = TypeVar("T")


def replace(path: Path, text: str) -> None:
    """Write a file in one piece, so that an interrupt cannot tear it."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def save(
    folder: Path, config: dict[str, Any], results: Mapping[str, Mapping[int, Any]]
) -> None:
    """Write `results.json`: settings, and runs by method and seed."""
    document = {
        "config": config,
        "runs": [
            {"method": method, "seed": seed, **run._asdict()}
            for method, runs in results.items()
            for seed, run in runs.items()
        ],
    }
    replace(folder / RESULTS, json.dumps(document, indent=1))


def load(
    folder: Path,
    kind: type[T],
    methods: Collection[str] | None = None,
    seeds: int | None = None,
    check: Callable[[Any, T], str | None] = lambda _settings, _run: None,
    settings: type[Any] | None = None,
) -> tuple[Any, dict[str, dict[int, T]]]:
    """The results that `save` has written, none where it has not.

    Args:
        folder: folder of the file.
        kind: type of each run, a `NamedTuple`.
        methods: methods that there may be; None: any.
        seeds: number of seeds that there may be; None: any.
        check: function of the settings and a run to its fault, or None.
        settings: the settings that are wanted, a `NamedTuple`; None: none.

    Returns:
        The settings, None where there are none, and the runs by method and seed.

    Raises:
        SystemExit: in one line, if it is damaged, or has other runs.
    """
    path = folder / RESULTS
    if not path.exists():
        return None, {}
    try:
        document = conform(read(path), _Document, "it")
        wanted = settings._fields if settings else ()
        found = {key: of for key, of in document.config.items() if key in wanted}
        config = conform(found, settings, "config") if settings else None
        results: dict[str, dict[int, T]] = {}
        for number, fields in enumerate(document.runs):
            name = f"runs[{number}]"
            method, seed, run = _run(fields, kind, name)
            if methods is not None and method not in methods:
                raise ValueError(f"{name} has a method of another run, {shown(method)}")
            if seed < 0 or (seeds is not None and seed >= seeds):
                raise ValueError(f"{name} has a seed of another run, {seed}")
            of_method = results.setdefault(method, {})
            wrong = "it is there twice" if seed in of_method else check(config, run)
            if wrong:
                raise ValueError(f"{name} ({shown(method)}, seed {seed}): {wrong}")
            of_method[seed] = run
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"{path} cannot be read: {error}. Without it, --resume trains anew"
        ) from None
    return config, results


class Built(NamedTuple):
    """Calls of methods' transformations in a file of results.

    Attributes:
        built: calls that the methods' texts have made, by text.
    """

    built: dict[str, Any]


def check_built(
    folder: Path, saved: Mapping[str, Any], built: Mapping[str, str]
) -> None:
    """Raise where finished runs had other transformations than those of now."""
    for method, call in saved.items():
        if built.get(method, call) != call:
            raise SystemExit(
                f"--resume: {folder / RESULTS} has {shown(method)} as {shown(call)}, "
                f"which is now {built[method]}: take another folder"
            )


class _Document(NamedTuple):
    """Content of a file of results."""

    config: dict[str, Any]
    runs: list[dict[str, Any]]


class _Key(NamedTuple):
    """Key that a run is found by."""

    method: str
    seed: int


def _run(fields: dict[str, Any], kind: type[T], name: str) -> tuple[str, int, T]:
    """The method, the seed and the run of an entry."""
    key = {of: fields.pop(of) for of in ("method", "seed") if of in fields}
    method, seed = conform(key, _Key, name)
    return method, seed, conform(fields, kind, name)
